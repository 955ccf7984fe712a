"""The builder of the real images: on 200 tiny stand-ins in the published layout, and on the real ones."""

import hashlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.folder import source
from bhcnet_jax.datasets.head_ct import head_ct_dataset_builder
from bhcnet_jax.errors import UserError

REAL = os.environ.get('HEAD_CT_DIR', '')
needs_real = pytest.mark.skipif(not REAL, reason='HEAD_CT_DIR, the folder of the real images, is not set')


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv('HEAD_CT_DIR', raising=False)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # tfds leaves empty folders there
    return tmp_path / 'tfds'


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """The published layout with 200 images of 6x5 pixels."""
    root = tmp_path / 'set'
    (root / 'head_ct' / 'head_ct').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(200):
        image = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        image.save(root / 'head_ct' / 'head_ct' / f'{index:03d}.png')
    rows = ''.join(f'{index},{int(index < 100)}\n' for index in range(200))
    (root / 'labels.csv').write_text('id, hemorrhage\n' + rows)
    return root


def load(path: Path | str = '', name: str = 'head_ct') -> input_pipeline.ImageSet:
    return input_pipeline.load(ConfigDict({'name': name, 'dir': str(path), 'image_size': 4}))


def error_line(path: Path | str = '', name: str = 'head_ct') -> str:
    with pytest.raises(UserError) as caught:
        load(path, name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def archive_of(folder: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target.with_suffix('')), 'zip', folder))


def test_a_labelled_stand_in_is_read_in_order_without_tensorflow(stand_in: Path) -> None:
    loaded = load(stand_in)
    assert loaded.class_names == ('normal', 'hemorrhage')
    assert loaded.ids == tuple(f'{index:03d}' for index in range(200))
    assert loaded.labels.tolist() == [1] * 100 + [0] * 100
    assert loaded.images.shape == (200, 4, 4) and loaded.images.dtype == np.uint8
    assert set(loaded.modes) == {'RGB'} and set(loaded.groups) == {''}
    assert loaded.heights.tolist() == [6] * 200 and loaded.widths.tolist() == [5] * 200
    assert 'tensorflow' not in sys.modules


def test_the_tfds_builder_alone_gives_the_published_pixels_back_in_grey(stand_in: Path, data_dir: Path) -> None:
    builder = head_ct_dataset_builder.Builder(data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=stand_in))
    records = builder.as_data_source(split='train', decoders={'image': tfds.decode.SkipDecoding()})
    published = sorted((stand_in / 'head_ct' / 'head_ct').iterdir())
    for record, path in zip(records, published, strict=True):
        with Image.open(io.BytesIO(record['image'])) as grey, Image.open(path) as image:
            np.testing.assert_array_equal(grey, image.convert('L'))
        assert record['mode'] == b'RGB' and record['coloured'] and record['bits'] == 8
        assert record['file_bytes'] == path.stat().st_size
        assert record['file_sha256'].decode() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert builder.info.file_format.value == 'array_record'
    assert builder.info.features['label'].names == ['normal', 'hemorrhage']
    assert 'Kitamura' in builder.info.citation and 'Kaggle' in builder.info.description
    assert set(builder.get_metadata().tags) <= set(tfds.core.dataset_metadata.valid_tags())


def test_zip_folder_and_any_nesting_have_one_fingerprint(stand_in: Path, tmp_path: Path) -> None:
    layout = head_ct_dataset_builder.Builder.LAYOUT

    def fingerprint(path: Path) -> str:
        return source.read(source.find(path), layout).fingerprint

    plain = fingerprint(stand_in)
    zip_file = archive_of(stand_in, tmp_path / 'archive.zip')
    assert fingerprint(zip_file) == plain
    (tmp_path / 'downloads').mkdir()
    zip_file.rename(tmp_path / 'downloads' / 'head-ct-hemorrhage.zip')
    assert fingerprint(tmp_path / 'downloads') == plain
    flat = tmp_path / 'x' / 'y' / 'flat'
    shutil.copytree(stand_in / 'head_ct' / 'head_ct', flat)
    shutil.copy(stand_in / 'labels.csv', flat)
    assert fingerprint(tmp_path / 'x') == plain


def test_the_set_is_found_by_flag_then_variable_then_manual_folder(
    stand_in: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = error_line()
    assert '$HEAD_CT_DIR (not set)' in line and 'manual (does not exist)' in line and 'kaggle.com' in line
    manual = data_dir / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    assert 'manual (empty)' in error_line()
    (manual / 'other.txt').write_text('of another data set')
    assert 'manual (1 files, no labels.csv)' in error_line()
    archive_of(stand_in, manual / 'archive.zip')
    by_manual_folder = load()
    first, second = (tmp_path / name for name in ('first', 'second'))
    for place in (first, second):
        shutil.copytree(stand_in, place)
        folder = place / 'head_ct' / 'head_ct'
        shutil.copy(folder / '000.png', folder / f'{len(place.name):03d}.png')
    monkeypatch.setenv('HEAD_CT_DIR', str(first))
    by_variable, by_flag = load(), load(second)
    assert len({by_manual_folder.fingerprint, by_variable.fingerprint, by_flag.fingerprint}) == 3
    assert by_flag.pixel_sha256[6] == by_flag.pixel_sha256[0]
    assert by_variable.pixel_sha256[5] == by_variable.pixel_sha256[0]


def test_a_fingerprint_other_than_the_published_one_warns_and_goes_on(
    stand_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level('WARNING', logger='absl'):
        fingerprint = load(stand_in).fingerprint
    (record,) = caplog.records
    assert 'differs from the published set' in record.getMessage() and fingerprint in record.getMessage()


def test_preparing_and_loading_write_nothing_to_the_terminal(
    stand_in: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        load(stand_in)
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ('', '')
    assert all('published set' in record.getMessage() for record in caplog.records)


def test_auto_takes_the_real_set_and_stops_at_a_broken_one(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HEAD_CT_DIR', str(stand_in))
    assert not load(name='auto').synthetic
    (stand_in / 'head_ct' / 'head_ct' / '007.png').unlink()
    assert 'no file 007.png' in error_line(name='auto')
    (stand_in / 'labels.csv').unlink()
    assert f'$HEAD_CT_DIR {stand_in} (199 files, no labels.csv)' in error_line(name='auto')
    assert 'does not exist' in error_line(tmp_path / 'typo', name='auto')


@pytest.mark.parametrize('key', ['HEAD_CT_DIR', 'dir'])
@pytest.mark.parametrize('name', ['auto', 'head_ct'])
def test_a_named_place_that_is_not_there_ends_in_one_line_not_in_the_phantom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    def line(path: str) -> str:
        monkeypatch.setenv('HEAD_CT_DIR', path if key == 'HEAD_CT_DIR' else '')
        return error_line(path if key == 'dir' else '', name=name)

    assert f'{tmp_path}/archive.zip (does not exist)' in line(f'{tmp_path}/archive.zip')
    (tmp_path / 'empty').mkdir()
    assert f'{tmp_path}/empty (empty)' in line(f'{tmp_path}/empty')
    assert "'~nosuchuser/x', but there is no such user" in line('~nosuchuser/x')


@pytest.mark.slow
def test_auto_without_a_set_takes_the_phantom_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load(name='auto')
    assert loaded.synthetic and loaded.name == 'phantom' and len(loaded.ids) == 200
    out, said = capfd.readouterr()
    assert not out
    assert 'PHANTOM' in said and 'SYNTHETIC' in said and 'felipekitamura/head-ct-hemorrhage' in said
    assert '$HEAD_CT_DIR (not set)' in said.splitlines()[-1]  # no progress bars after it


def _drop_row(root: Path) -> None:
    lines = (root / 'labels.csv').read_text().splitlines(keepends=True)
    (root / 'labels.csv').write_text(''.join(lines[:-1]))


def _drop_last(root: Path) -> None:
    _drop_row(root)
    (root / 'head_ct' / 'head_ct' / '199.png').unlink()


def _replace(root: Path, old: str, new: str) -> None:
    (root / 'labels.csv').write_text((root / 'labels.csv').read_text().replace(old, new))


def _words(root: Path) -> None:
    _replace(root, ',0\n', ',no\n')
    _replace(root, ',1\n', ',yes\n')


def _write(root: Path, name: str, data: bytes) -> None:
    (root / 'head_ct' / 'head_ct' / name).write_bytes(data)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new('L', (9, 9)).save(buffer, 'JPEG')
    return buffer.getvalue()


BROKEN = {
    'missing file': (lambda root: (root / 'head_ct/head_ct/042.png').unlink(), 'line 44: no file 042.png'),
    'file without a row': (_drop_row, '199.png: an image without a row'),
    'another file': (lambda root: _write(root, '200.png', b'x'), '200.png: an image without a row'),
    'file twice': (lambda root: _write(root, '../003.png', b'x'), '003.png is there twice'),
    'counts': (_drop_last, '99 images labelled 0 and 100 labelled 1, expected 100 and 100'),
    'label counts': (lambda root: _replace(root, '\n0,1\n', '\n0,0\n'), 'expected 100 and 100'),
    'header': (lambda root: _replace(root, 'hemorrhage', 'x'), "header 'id,x', expected 'id,hemorrhage'"),
    'duplicate id': (lambda root: _replace(root, '\n1,1\n', '\n00,1\n'), 'line 3: head_ct/head_ct/000.png is listed'),
    'label': (lambda root: _replace(root, '\n5,1\n', '\n5,2\n'), "line 7: label '2' of head_ct/head_ct/005.png makes"),
    'words': (lambda root: _words(root), "labels 'no' and 'yes', expected 0 and 1"),
    'text': (lambda root: _write(root, '000.png', b'twelve bytes'), '000.png: 12 bytes, not an intact PNG'),
    'jpeg': (lambda root: _write(root, '000.png', _jpeg()), 'bytes, not an intact PNG'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_broken_set_ends_in_one_line(stand_in: Path, data_dir: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(stand_in)
    assert message in error_line(stand_in)
    assert not list(data_dir.rglob('*.array_record*'))


@needs_real
@pytest.mark.slow
def test_the_real_images_are_the_published_ones(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level('WARNING', logger='absl'):
        loaded = load(REAL, name='auto')
    assert not caplog.records
    assert loaded.fingerprint == head_ct_dataset_builder.Builder.LAYOUT.published
    assert (loaded.labels == 1).sum() == 100 and loaded.labels[99] == 1 and loaded.labels[100] == 0
    assert loaded.modes.count('RGBA') == 12 and loaded.modes.count('RGB') == 188
    assert loaded.pixel_sha256[188] == loaded.pixel_sha256[189] and len(set(loaded.pixel_sha256)) == 199


@needs_real
@pytest.mark.parametrize(('equalise', 'expected'), [
    (False, '3878b6c429ea4b9cbeaf24b33839b4d53a777ab0f182f0b758ab2381868fecde'),
    (True, '2f831bc2cbd63d173d9e1cb1ec5199f07e45aa34b9944361d95256d399db844c'),
])  # fmt: skip
@pytest.mark.slow
def test_the_real_images_are_the_arrays_that_the_published_trials_saw(equalise: bool, expected: str) -> None:
    dataset = {'name': 'head_ct', 'dir': REAL, 'image_size': 128, 'equalise': equalise}
    loaded = input_pipeline.load(ConfigDict(dataset))
    names = ('images', 'thumbnails', 'labels', 'heights', 'widths', 'coloured', 'file_bytes')
    digest = hashlib.sha256(b''.join(getattr(loaded, name).tobytes() for name in names))
    texts = (*loaded.ids, *loaded.groups, *loaded.modes, *loaded.pixel_sha256)
    digest.update('\n'.join(texts).encode())
    assert digest.hexdigest() == expected


@needs_real
def test_a_zip_of_the_real_images_is_the_published_set(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'archive.zip', 'w') as archive:
        for path in sorted(Path(REAL).rglob('*')):
            archive.write(path, path.relative_to(REAL))
    layout = head_ct_dataset_builder.Builder.LAYOUT
    assert source.read(source.find(tmp_path / 'archive.zip'), layout).fingerprint == layout.published
