"""What TensorBoard finds, read back from the files' bytes."""

import io
import math
import os

import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from bhcnet_jax.display import tensorboard
from bhcnet_jax.display.tensorboard import Events, SweepEvents

SWEPT = {
    f'{number}' + 63 * 'f': {'seed': number, 'model.filters': (2, 3), 'augment.frozen': True} for number in range(1, 9)
}


def values(directory):
    """tag -> (step, value) of the only event file in a directory."""
    (file,) = directory.glob('events*')
    data, found = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], 'little')
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
        data = data[16 + length :]
    return found


def curve(found, tag):
    return [(step, pytest.approx(value.simple_value)) for step, value in found[tag]]


def write(directory, count, accuracy=0.5):
    with SweepEvents(directory, 'PHANTOM', SWEPT) as events:
        for number, trial_id in enumerate(list(SWEPT)[:count], 1):
            events.add_trial(trial_id, {'accuracy': accuracy * number, 'auc': math.nan if number == 2 else 0.25})


def session(directory):
    """Swept values and scores of a session, as the plugin reads them."""
    found = values(directory)
    (_, start), = found['_hparams_/session_start_info']
    assert start.metadata.plugin_data.plugin_name == 'hparams'
    info = plugin_hparams_pb2.HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info
    kinds = {name: value.WhichOneof('kind') for name, value in info.hparams.items()}
    hparams = {name: getattr(value, kinds[name]) for name, value in info.hparams.items()}
    assert '_hparams_/experiment' in found and '_hparams_/session_end_info' in found
    return hparams, {tag: round(found[tag][0][1].simple_value, 6) for tag in found if tag.startswith('trial/')}


def test_every_finished_trial_is_a_point_beside_the_mean_so_far(tmp_path):
    write(tmp_path / 'sweep', 3)
    found = values(tmp_path / 'sweep')
    assert curve(found, 'accuracy') == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert curve(found, 'mean_so_far/accuracy') == [(1, 0.5), (2, 0.75), (3, 1.0)]
    assert curve(found, 'auc') == curve(found, 'mean_so_far/auc') == [(1, 0.25), (3, 0.25)]  # undefined in the second


def test_every_trial_is_a_session_with_its_swept_values_and_scores(tmp_path):
    write(tmp_path / 'sweep', 3)
    found = [session(tmp_path / 'sweep' / trial_id[:12]) for trial_id in list(SWEPT)[:1]]
    assert found == [(
        {'seed': 1.0, 'model.filters': '2, 3', 'augment.frozen': True, 'dataset': 'PHANTOM'},
        {'trial/accuracy': 0.5, 'trial/auc': 0.25},
    )]  # fmt: skip


def test_a_summary_begun_again_has_every_trial_once(tmp_path):
    write(tmp_path / 'sweep', 4, accuracy=0.1)
    write(tmp_path / 'sweep', 2)
    assert [step for step, _ in values(tmp_path / 'sweep')['accuracy']] == [1, 2]
    assert len([path for path in (tmp_path / 'sweep').iterdir() if path.is_dir()]) == 2
    assert not list(tmp_path.rglob('3fff*'))


def test_a_summary_of_synthetic_images_says_so_in_every_file(tmp_path):
    write(tmp_path / 'sweep', 3)
    files = list(tmp_path.rglob('events*'))
    assert len(files) == 4
    assert all(b'PHANTOM' in file.read_bytes() for file in files)


def test_a_large_sweep_has_all_points_but_not_a_folder_for_every_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, 'MAX_SESSIONS', 5)
    write(tmp_path / 'sweep', 8)
    found = values(tmp_path / 'sweep')
    assert len(found['accuracy']) == 8
    assert len(list(tmp_path.rglob('events*'))) == 6
    note = found['note/text_summary'][0][1].tensor.string_val[0].decode()
    assert note == 'HPARAMS has the first 5 finished trials of 8; results.csv has all.'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full, the device that is always full')
def test_a_full_disk_is_an_error_at_once_and_not_a_wait_without_end(tmp_path, monkeypatch):
    full = io.BufferedWriter(io.FileIO('/dev/full', 'w'))
    monkeypatch.setattr('tensorboardX.record_writer.open_file', lambda _: full)
    with pytest.raises(OSError, match='No space left'), Events(tmp_path, 'folder') as events:
        for step in range(10_000):
            events.add_scalars({'accuracy': 0.5}, step)
