import collections
import contextlib
import json
import logging
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from bhcnet_jax.run.checkpoints import DIGESTS, Checkpoints

IDS = ('a', 'b')


def tree(value, size=5):
    return {
        'state': {'kernel': np.full((2, size), value, np.float32), 'count': np.full(2, value, np.int32)},
        'class_weights': np.array([[1, value], [2, value]], np.float32),
    }


@pytest.fixture
def saved(tmp_path):
    """Checkpoints after epochs 1 to 3."""
    checkpoints = Checkpoints(tmp_path / 'balanced', IDS)
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, tree(epoch))
    checkpoints.close()
    return tmp_path / 'balanced'


def restore(directory, like=None, ids=IDS):
    checkpoints = Checkpoints(directory, ids)
    try:
        return checkpoints.restore(like or tree(0))
    finally:
        checkpoints.close()


def test_the_newest_checkpoint_comes_back_bit_for_bit_as_numpy(saved):
    epochs_done, found = restore(saved)
    assert epochs_done == 3
    for part, expected in ((found['state']['kernel'], tree(3)['state']['kernel']),
                           (found['class_weights'], tree(3)['class_weights'])):  # fmt: skip
        assert type(part) is np.ndarray
        np.testing.assert_array_equal(part, expected)
        assert part.dtype == expected.dtype


def test_what_is_saved_in_a_thread_is_whole_once_it_was_waited_for(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / 'balanced', IDS)) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.start_saving(epoch, tree(epoch))
        checkpoints.wait()
        assert checkpoints.restore(tree(0))[0] == 3
        checkpoints.start_saving(4, tree(4))
    epochs_done, found = restore(tmp_path / 'balanced')
    assert epochs_done == 4
    np.testing.assert_array_equal(found['state']['kernel'], tree(4)['state']['kernel'])


@pytest.mark.parametrize('ask', ['wait', 'start_saving', 'close'])
def test_what_goes_wrong_in_the_thread_is_raised_when_it_is_asked(tmp_path, monkeypatch, ask):
    checkpoints = Checkpoints(tmp_path / 'balanced', IDS)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: collections.namedtuple('Usage', 'total free')(10**9, 10))
    checkpoints.start_saving(1, tree(1))
    with pytest.raises(OSError, match='No space left'):
        getattr(checkpoints, ask)(*((2, tree(2)) if ask == 'start_saving' else ()))
    if ask != 'close':
        checkpoints.close()


@pytest.mark.parametrize('name', ['study [2]', '[a]', '*', 'a?', '{0}', '100%20', '~', 'a#b', 'ü', '**'])
def test_any_name_of_a_folder_will_do(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / name / 'balanced', IDS)
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, tree(epoch))
    checkpoints.close()
    epochs_done, found = restore(tmp_path / name / 'balanced')
    assert (epochs_done, found['state']['count'][0]) == (3, 3)


TOO_LARGE = """
import contextlib, errno, pathlib, resource, sys
import numpy as np
from bhcnet_jax.run.checkpoints import Checkpoints
with contextlib.closing(Checkpoints(pathlib.Path(sys.argv[1]), range(20_000))) as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        checkpoints.save(4, {'kernel': np.random.default_rng(0).random(20_000)})
    except OSError as error:
        print(error.errno == errno.EFBIG)
"""


def test_a_checkpoint_that_the_system_does_not_let_be_written_is_an_oserror_and_leaves_the_last_one(saved):
    # In a process of its own, since threads of orbax raise for a while.
    child = subprocess.run(
        [sys.executable, '-c', TOO_LARGE, saved], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.stdout == 'True\n', child.stderr
    assert restore(saved)[0] == 3


def test_a_checkpoint_larger_than_what_is_free_is_not_begun(saved, monkeypatch):
    checkpoints = Checkpoints(saved, IDS)
    monkeypatch.setattr('shutil.disk_usage', lambda _: collections.namedtuple('Usage', 'total free')(10**9, 10**6))
    with contextlib.closing(checkpoints), pytest.raises(OSError, match='No space left on device'):
        checkpoints.save(4, tree(4))
    assert sorted(path.name for path in saved.iterdir() if path.name.startswith('4')) == []


def test_only_the_last_two_stay_on_disk(saved):
    assert sorted(path.name for path in saved.iterdir() if path.name.isdigit()) == ['2', '3']


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert restore(tmp_path / 'new') is None


@pytest.mark.parametrize('stray', ['directory', 'file', 'other name'])
def test_a_stray_entry_does_not_hijack_a_restore(saved, stray, caplog):
    if stray == 'directory':
        (saved / '99').mkdir()
    elif stray == 'file':
        (saved / '99').write_text('not a checkpoint')
    else:
        (saved / 'notes').mkdir()
    with caplog.at_level(logging.WARNING):
        assert restore(saved)[0] == 3
    assert ('cannot be read' in caplog.text) == (stray == 'directory')


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_its_number_is_free_again(saved, caplog):
    for path in (saved / '3').rglob('*'):
        if path.is_file():
            path.write_bytes(b'damaged')
    with caplog.at_level(logging.WARNING):
        assert restore(saved)[0] == 2
    assert '3 cannot be read' in caplog.text
    checkpoints = Checkpoints(saved, IDS)
    checkpoints.save(3, tree(33))
    assert checkpoints.restore(tree(0))[1]['state']['count'][0] == 33
    checkpoints.close()


def flip(path, generator):
    data = bytearray(path.read_bytes())
    bit = int(generator.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_flipped_bit_in_a_checkpoint_changes_nothing_or_is_noticed(saved, tmp_path):
    generator, noticed = np.random.default_rng(0), 0
    within = [path.relative_to(saved) for path in (saved / '3').rglob('*') if path.is_file() and path.stat().st_size]
    for number in range(60):
        copy = shutil.copytree(saved, tmp_path / str(number) / 'balanced')
        flip(copy / generator.choice(within), generator)
        epochs_done, found = restore(copy)
        noticed += epochs_done == 2
        for mine, expected in zip(jax.tree.leaves(found), jax.tree.leaves(tree(epochs_done)), strict=True):
            np.testing.assert_array_equal(mine, expected)
    assert 0 < noticed < 60


def test_arrays_that_are_read_but_are_not_those_that_were_saved_are_noticed(saved, caplog):
    digests = json.loads((saved / DIGESTS).read_text())
    digests['3'][1] = digests['3'][0]
    (saved / DIGESTS).write_text(json.dumps(digests))
    assert restore(saved)[0] == 2
    assert 'its content does not agree with digests.json' in caplog.text


@pytest.mark.parametrize('epoch', ['1', '9'])
def test_a_checkpoint_renamed_to_another_epoch_is_noticed(saved, epoch, caplog):
    (saved / '3').rename(saved / epoch)
    assert restore(saved)[0] == 2
    if epoch == '9':
        assert 'digests.json knows no such checkpoint' in caplog.text


def test_checkpoints_of_other_trials_are_not_taken_and_a_forgotten_one_does_not_matter(saved):
    assert restore(saved, ids=('a', None))[0] == 3
    assert restore(saved, ids=('b', 'a')) is None


def test_checkpoints_of_an_earlier_version_are_accepted_without_digests(saved):
    (saved / DIGESTS).unlink()
    checkpoints = Checkpoints(saved, IDS)
    assert checkpoints.restore(tree(0))[0] == 3
    checkpoints.save(4, tree(4))
    checkpoints.close()
    (saved / '4' / 'default' / 'manifest.ocdbt').unlink()
    assert restore(saved)[0] == 3


def test_with_damaged_digests_nothing_is_taken_and_new_ones_are_written(saved):
    (saved / DIGESTS).write_text('{"3": ')
    assert restore(saved) is None
    checkpoints = Checkpoints(saved, IDS)
    checkpoints.save(1, tree(1))
    assert checkpoints.restore(tree(0))[0] == 1
    checkpoints.close()


UNREADABLE = """
import contextlib, gc, pathlib, sys, time
import numpy as np
from bhcnet_jax.run.checkpoints import Checkpoints
for name in sys.argv[1:]:
    with contextlib.closing(Checkpoints(pathlib.Path(name), ['a', 'b'])) as checkpoints:
        like = {'state': {'kernel': np.zeros((2, 5), np.float32), 'count': np.zeros(2, np.int32)},
                'class_weights': np.zeros((2, 2), np.float32)}
        assert checkpoints.restore(like)[0] == 2
    gc.collect()
    time.sleep(0.1)
"""


def test_an_unreadable_checkpoint_is_one_line_in_the_log(saved, tmp_path):
    copies = [shutil.copytree(saved, tmp_path / str(number) / 'balanced') for number in range(12)]
    for number, copy in enumerate(copies):
        manifest, (data, *_) = copy / '3/default/manifest.ocdbt', (copy / '3/default/d').iterdir()
        (manifest if number % 2 else data).write_bytes(b'damaged' if number % 3 else b'')
    child = subprocess.run(
        [sys.executable, '-c', UNREADABLE, *copies], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    lines = child.stderr.splitlines()
    assert len(lines) == len(copies) and all('cannot be read' in line for line in lines), child.stderr


def test_a_checkpoint_of_other_shapes_is_not_taken(saved, caplog):
    assert restore(saved, like=tree(0, size=6)) is None
    assert 'cannot be read' in caplog.text


def test_a_process_killed_while_saving_leaves_whole_checkpoints_only(tmp_path):
    # The child dies inside its third save, when orbax renames the finished temporary directory.
    script = """
        import os, pathlib, signal, sys
        import numpy as np
        from bhcnet_jax.run.checkpoints import Checkpoints

        def die(event, arguments):
            if event == 'os.rename' and str(arguments[1]).endswith('/3'):
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), ['a'])
        sys.addaudithook(die)
        for epoch in (1, 2, 3):
            checkpoints.save(epoch, {'kernel': np.full((1, 4), epoch, np.float32)})
    """
    child = subprocess.run([sys.executable, '-c', textwrap.dedent(script), str(tmp_path / 'kill')], check=False)
    assert child.returncode == -9
    checkpoints = Checkpoints(tmp_path / 'kill', ['a'])
    epochs_done, found = checkpoints.restore({'kernel': np.zeros((1, 4), np.float32)})
    assert epochs_done == 2
    assert found['kernel'][0, 0] == 2
    checkpoints.close()
