"""Decoded images that are kept for the next time: what comes back, what is noticed, and what a run survives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.datasets import input_pipeline, kept, preprocessing
from bhcnet_jax.errors import UserError

GROUPS = ('', '', 'é\0', 'é\0')
LOAD = """
import resource, signal, sys
from absl import flags
from ml_collections import ConfigDict
from bhcnet_jax.datasets import input_pipeline
flags.FLAGS.mark_as_parsed()
dataset = ConfigDict({'name': 'folder', 'dir': sys.argv[1], 'image_size': 8})
"""


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    return tmp_path / 'tfds'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / 'set')


def folder_of(root: Path, seed: int = 0) -> Path:
    """Four heads: bright discs of 20 to 23 pixels; two have a group."""
    root.mkdir()
    row, column = np.mgrid[:40, :40] - 20
    for index in range(4):
        noise = np.random.default_rng(seed + index).integers(0, 50, (40, 40))
        pixels = np.where(row**2 + column**2 < (20 + index) ** 2 // 4, 200 + noise, 0)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f'{index}.png')
    rows = (f'{index}.png,{index % 2},{GROUPS[index]}\n' for index in range(4))
    (root / 'labels.csv').write_text('file,label,group\n' + ''.join(rows))
    return root


def load(folder: Path, image_size: int = 8, resolution: int = 0, **more: object) -> input_pipeline.ImageSet:
    dataset = ConfigDict({'name': 'folder', 'dir': str(folder), 'image_size': image_size, 'equalise': False, **more})
    return input_pipeline.load(dataset, resolution)


def assert_same(one: input_pipeline.ImageSet, other: input_pipeline.ImageSet) -> None:
    for name, value in vars(one).items():
        again = getattr(other, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == again.dtype and value.flags.writeable == again.flags.writeable, name
            np.testing.assert_array_equal(value, again)
        else:
            assert value == again and type(value) is type(again), name


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no prepared copy can be opened."""
    monkeypatch.setattr(input_pipeline, '_builder', lambda chosen: pytest.fail('the prepared copy is opened'))


@pytest.mark.parametrize('how', [{}, {'equalise': True}, {'equalise': True, 'resolution': 17}])
def test_a_set_that_was_kept_is_the_same_in_all_it_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: dict[str, object]
) -> None:
    first = load(folder, **how)
    said = caplog.messages
    assert first.groups == GROUPS
    refuse(monkeypatch)
    caplog.clear()
    assert_same(first, load(folder, **how))
    assert caplog.messages == said


def test_each_way_to_decode_is_kept_by_itself(folder: Path, data_dir: Path) -> None:
    ways = [{}, {'image_size': 9}, {'equalise': True}, {'equalise': True, 'resolution': 17}]
    found = [load(folder, **way) for way in ways]
    assert len(list(data_dir.rglob('*.npz'))) == len(ways)
    for one, way in zip(found, ways, strict=True):
        assert_same(one, load(folder, **way))
    assert len({each.images.tobytes() for each in found}) == len(ways)


def test_another_version_of_the_decoding_decodes_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    monkeypatch.setattr(kept, 'VERSION', kept.VERSION + 1)
    decoded = []
    decode = preprocessing.decode
    monkeypatch.setattr(preprocessing, 'decode', lambda record, **how: decoded.append(record) or decode(record, **how))
    load(folder)
    assert len(decoded) == 4


def test_a_prepared_copy_that_is_damaged_or_gone_is_noticed_when_it_is_read_again(folder: Path, data_dir: Path) -> None:
    first = load(folder)
    (records,) = data_dir.rglob('*.array_record*')
    records.write_bytes(b'')
    assert_same(first, load(folder))
    with pytest.raises(UserError, match='prepared copy is damaged'):
        load(folder, 9)


@pytest.mark.parametrize(
    'damage', ['empty', 'cut', 'a bit', 'a bit of a number', 'no npz', 'an array', 'renamed', 'moved']
)
def test_a_damaged_or_foreign_file_is_made_anew_with_one_warning(
    tmp_path: Path, data_dir: Path, caplog: pytest.LogCaptureFixture, folder: Path, damage: str
) -> None:
    first = load(folder)
    (path,) = data_dir.rglob('*.npz')
    whole = path.read_bytes()
    places = {'a bit': first.images.tobytes(), 'a bit of a number': b'"file_bytes"'}
    if damage in ('renamed', 'moved'):
        other = load(folder, 9) if damage == 'renamed' else load(folder_of(tmp_path / 'other', seed=9))
        (foreign,) = set(data_dir.rglob('*.npz')) - {path}
        assert other.ids == first.ids
        foreign.replace(path)
    elif damage == 'an array':
        with path.open('wb') as file:
            np.save(file, first.images)
    elif damage in places:
        at = whole.index(places[damage]) + 16
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    else:
        path.write_bytes({'empty': b'', 'cut': whole[:-100], 'no npz': b'no npz'}[damage])
    caplog.clear()
    assert_same(first, load(folder))
    (warning,) = caplog.messages
    assert f'{path} is damaged' in warning
    caplog.clear()
    assert_same(first, load(folder))
    assert not caplog.messages and path.read_bytes() == whole


def test_a_bit_that_the_zip_file_itself_would_not_notice_is_noticed(
    folder: Path, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(folder)
    (path,) = data_dir.rglob('*.npz')
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays['image'][0, 0, 0] ^= 1
    np.savez(path, **arrays)
    assert_same(first, load(folder))
    assert 'its digest is another' in caplog.text


@pytest.mark.parametrize('limit', [0, 100, 1000, 2000])
def test_without_room_a_set_is_loaded_and_nothing_is_left(folder: Path, data_dir: Path, limit: int) -> None:
    load(folder, 9)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob('*') if path.is_file()}
    program = (
        f'{LOAD}signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n'
        'assert input_pipeline.load(dataset).images.shape == (4, 8, 8)\n'
    )
    subprocess.run([sys.executable, '-c', program, str(folder)], check=True)
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob('*') if path.is_file()}


def test_where_a_folder_has_the_name_a_set_is_loaded(folder: Path, data_dir: Path) -> None:
    first = load(folder)
    (path,) = data_dir.rglob('*.npz')
    path.unlink()
    path.mkdir()
    assert_same(first, load(folder))
    assert path.is_dir()


def test_only_its_owner_can_read_what_is_kept_and_tfds_does_not_see_it(folder: Path, data_dir: Path) -> None:
    mask = os.umask(0o022)
    try:
        first = load(folder)
    finally:
        os.umask(mask)
    (path,) = data_dir.rglob('*.npz')
    assert path.stat().st_mode & 0o777 == 0o600
    (records,) = data_dir.rglob('*.array_record*')
    assert path.parent == records.parent.parent
    assert tfds.builder_from_directory(records.parent).info.splits['train'].num_examples == 4
    assert tfds.core.Version.is_valid(path.name) is False
    assert first.fingerprint == path.parent.name


def test_a_set_that_was_kept_opens_without_the_libraries_that_prepared_it(folder: Path) -> None:
    load(folder)
    program = LOAD + 'input_pipeline.load(dataset); print(*{name.partition(".")[0] for name in sys.modules})'
    done = subprocess.run([sys.executable, '-c', program, str(folder)], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {'tensorflow_datasets', 'grain', 'array_record', 'scipy', 'jax'}
