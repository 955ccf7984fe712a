"""A labelled folder or zip: what is accepted, and that everything else ends in one line naming the file."""

import io
import os
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.folder import images, source
from bhcnet_jax.errors import UserError

OUTSIDE = tempfile.gettempdir()


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # tfds leaves empty folders there
    return tmp_path / 'tfds'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png to d.png, labels 0 1 0 1."""
    root = tmp_path / 'set'
    root.mkdir()
    for index, name in enumerate('abcd'):
        (root / f'{name}.png').write_bytes(encode(pixels(index)))
    (root / 'labels.csv').write_text('file,label\na.png,0\nb.png,1\nc.png,0\nd.png,1\n')
    return root


def pixels(seed: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def encode(image: np.ndarray | Image.Image, image_format: str = 'PNG', **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def load(path: Path, image_size: int = 8) -> input_pipeline.ImageSet:
    return input_pipeline.load(ConfigDict({'name': 'folder', 'dir': str(path), 'image_size': image_size}))


def error_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob('*'), reverse=True):
            archive.write(path, path.relative_to(folder))
    return target


def png_claiming(width: int, height: int) -> bytes:
    """A small file whose header claims any size; all of its rows are zero and compress to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def test_images_come_back_in_the_order_of_the_csv(folder: Path) -> None:
    (folder / 'labels.csv').write_text('file,label,group\nd.png,1,p1\na.png,0,\nc.png,0,p1\nb.png,1,p2\n')
    loaded = load(folder)
    assert loaded.ids == ('d.png', 'a.png', 'c.png', 'b.png')
    assert loaded.labels.tolist() == [1, 0, 0, 1]
    assert loaded.groups == ('p1', '', 'p1', 'p2')
    assert (loaded.name, loaded.synthetic) == ('set', False)
    assert loaded.file_bytes.tolist() == [(folder / name).stat().st_size for name in loaded.ids]


@pytest.mark.parametrize('text', [
    '\ufefffile, label\na.png,0\nb.png,1\nc.png,0\nd.png,1\n',
    'file,label\r\na.png,0\r\n\r\nb.png,1\r\nc.png,0\r\nd.png,1',
    ' file ,label\n a.png , 0\n"b.png",1\n./c.png,0\nd.png,1\n\n',
    'file,label\ra.png,0\rb.png,1\rc.png,0\rd.png,1\r',
])  # fmt: skip
def test_spaces_quotes_line_ends_and_a_byte_order_mark_change_nothing(folder: Path, text: str) -> None:
    plain = load(folder)
    (folder / 'labels.csv').write_bytes(text.encode())
    assert load(folder).fingerprint == plain.fingerprint


def test_zip_nesting_and_time_stamps_do_not_change_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    plain = load(folder).fingerprint
    assert load(zipped(folder, tmp_path / 'a.zip')).fingerprint == plain
    holder = tmp_path / 'holder'
    (holder / '__MACOSX').mkdir(parents=True)
    (holder / '__MACOSX' / '._a.png').write_bytes(b'junk')
    (holder / '.DS_Store').write_bytes(b'junk')
    folder.rename(holder / 'deep')
    os.utime(holder / 'deep' / 'a.png', (10**9, 10**9))
    assert load(holder).fingerprint == plain
    assert load(zipped(holder, tmp_path / 'b.zip')).fingerprint == plain


@pytest.mark.parametrize('change', ['label', 'order', 'pixel', 'group'])
def test_a_changed_source_changes_the_fingerprint_and_is_read_anew(folder: Path, change: str) -> None:
    before = load(folder)
    csv = (folder / 'labels.csv').read_text()
    if change == 'label':
        (folder / 'labels.csv').write_text(csv.replace('a.png,0', 'a.png,1'))
    elif change == 'order':
        (folder / 'labels.csv').write_text('file,label\nb.png,1\na.png,0\nc.png,0\nd.png,1\n')
    elif change == 'group':
        (folder / 'labels.csv').write_text('file,label,group\na.png,0,x\nb.png,1,\nc.png,0,\nd.png,1,\n')
    else:
        (folder / 'a.png').write_bytes(encode(pixels(99)))
    after = load(folder)
    assert after.fingerprint != before.fingerprint
    column = {'label': 'labels', 'order': 'ids', 'group': 'groups', 'pixel': 'images'}[change]
    assert not np.array_equal(getattr(after, column), getattr(before, column))


def test_a_zip_lies_beside_its_unpacked_folder_and_the_folder_wins(folder: Path) -> None:
    zipped(folder, folder / 'archive.zip')
    assert len(load(folder).ids) == 4


def test_subfolders_links_and_backslashes_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (folder / 'a.png').rename(tmp_path / 'elsewhere' / 'a.png')
    (folder / 'sub').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'loop').symlink_to(folder)
    (folder / 'labels.csv').write_text('file,label\nsub\\a.png,0\nb.png,1\nc.png,0\nd.png,1\n')
    assert load(folder).ids[0] == 'sub/a.png'


def test_a_decomposed_file_name_matches_a_composed_row(folder: Path) -> None:
    (folder / 'a.png').rename(folder / unicodedata.normalize('NFD', 'é.png'))
    (folder / 'labels.csv').write_text('file,label\né.png,0\nb.png,1\nc.png,0\nd.png,1\n')
    assert load(folder).ids[0] == unicodedata.normalize('NFC', 'é.png')


@pytest.mark.parametrize('image_format', ['JPEG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM'])
def test_other_image_formats_are_read(folder: Path, image_format: str) -> None:
    smooth = np.add.outer(np.arange(12), np.arange(10)).astype(np.uint8) * 8
    (folder / 'a.png').write_bytes(encode(smooth, image_format))
    (folder / 'b.png').write_bytes(encode(smooth))
    loaded = load(folder)
    assert np.abs(loaded.images[0].astype(int) - loaded.images[1]).max() <= 8  # lossy codecs


BAD_ROWS = {
    'label': ('a.png,2', "labels.csv, line 5: label '2' of a.png makes 3 classes ('0', '1', '2'), expected two"),
    'word': ('a.png,yes', "line 5: label 'yes' of a.png makes 3 classes"),
    'no word': ('a.png,', 'line 5: no label of a.png'),
    'no label': ('a.png', 'line 5: 1 columns, expected 2'),
    'duplicate': ('b.png,1', 'line 5: b.png is listed twice'),
    'missing': ('e.png,0', 'line 5: no file e.png'),
    'outside': ('../a.png,0', 'line 5: no file ../a.png'),
    'absolute': ('/etc/hostname,0', 'line 5: no file /etc/hostname'),
    'empty name': (',0', 'line 5: no file'),
    'a folder': ('.,0', 'line 5: no file .'),
    'quote': ('"a.png,0', 'labels.csv: not a csv'),
    'huge field': ('x' * 200_000 + ',0', 'labels.csv: not a csv'),
    'none': ('', 'a.png: an image without a row'),
}


@pytest.mark.parametrize('case', BAD_ROWS)
def test_a_bad_row_is_named(folder: Path, case: str) -> None:
    row, message = BAD_ROWS[case]
    (folder / 'labels.csv').write_text(f'file,label\nb.png,1\nc.png,0\nd.png,1\n{row}\n')
    assert message in error_line(folder)


@pytest.mark.parametrize('content', [
    b'', b'file label\na.png 0\n', b'a.png,0\n', b'file,label,label\na.png,0,0\n',
    b'file,label\n', 'file,label\né.png,0\n'.encode('latin-1'),
    'file,label\na.png,0\n'.encode('utf-16'), b'\0' * 100, os.urandom(500),
])  # fmt: skip
def test_a_bad_table_is_named(folder: Path, content: bytes) -> None:
    (folder / 'labels.csv').write_bytes(content)
    assert 'labels.csv: ' in error_line(folder)


PNG = encode(pixels(0, 60, 50))
BAD_IMAGES = {
    'empty': b'',
    'text': b'hello world!',
    'truncated': PNG[: len(PNG) // 2],
    'only a header': PNG[:33],
    'flipped bytes': PNG[:100] + bytes(50) + PNG[150:],
    'jpeg cut short': encode(pixels(0, 60, 50), 'JPEG')[:400],
    'bomb': png_claiming(20_000, 20_000),
    'warning-size bomb': png_claiming(10_000, 10_000),
    'absurd bomb': png_claiming(2**31 - 1, 2**31 - 1),
    'no pixels': png_claiming(0, 5),
    'float tiff': encode(Image.fromarray(np.ones((4, 4), np.float32)), 'TIFF'),
    '32-bit tiff': encode(Image.fromarray(np.full((4, 4), -7, np.int32)), 'TIFF'),
}


@pytest.mark.parametrize('case', BAD_IMAGES)
def test_a_bad_image_is_named_and_leaves_no_prepared_copy(folder: Path, data_dir: Path, case: str) -> None:
    good = (folder / 'c.png').read_bytes()
    (folder / 'c.png').write_bytes(BAD_IMAGES[case])
    assert 'c.png: ' in error_line(folder)
    assert not list(data_dir.rglob('*.array_record*'))
    (folder / 'c.png').write_bytes(good)
    assert len(load(folder).ids) == 4


def test_random_damage_never_ends_in_anything_but_an_image_or_one_line(folder: Path) -> None:
    rng = np.random.default_rng(0)
    files = [encode(pixels(1, 30, 30), kind) for kind in ('PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'PPM')]
    rejected = 0
    for trial in range(400):
        data = bytearray(files[trial % len(files)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            images.read(bytes(data[: rng.integers(1, len(data) + 1)]), 'x.png')
        except UserError as error:
            rejected += 1
            assert str(error).startswith('x.png: ') and len(str(error).splitlines()) == 1
    assert rejected > 200


def test_the_largest_allowed_image_is_read_and_a_larger_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, 'MAX_PIXELS', 120)
    images.read(encode(pixels(0, 12, 10)), 'x')
    with pytest.raises(UserError, match='11 x 12 pixels'):
        images.read(encode(pixels(0, 12, 11)), 'x')


def test_a_file_beyond_the_limit_of_bytes_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, 'MAX_FILE_BYTES', 100)
    assert 'a.png: expected at most 100 bytes' in error_line(folder)


def test_a_folder_in_place_of_a_file_is_a_missing_file(folder: Path) -> None:
    (folder / 'a.png').unlink()
    (folder / 'a.png').mkdir()
    assert 'no file a.png' in error_line(folder)


def test_a_pipe_and_a_dangling_link_are_missing_files(folder: Path) -> None:
    (folder / 'a.png').unlink()
    os.mkfifo(folder / 'a.png')
    assert 'no file a.png' in error_line(folder)
    (folder / 'a.png').unlink()
    (folder / 'a.png').symlink_to('nowhere')
    assert 'no file a.png' in error_line(folder)


@pytest.mark.parametrize(('name', 'mode'), [('b.png', 0), ('labels.csv', 0), ('.', 0), ('.', 0o444)])
def test_no_read_permission_is_named(folder: Path, name: str, mode: int) -> None:
    with tempfile.TemporaryDirectory(dir=OUTSIDE) as outside:  # pytest's folders are closed to others
        os.chmod(outside, 0o755)
        target = Path(outside) / 'set'
        folder.rename(target)
        os.chmod(target / name, mode)
        try:
            line = _as_nobody(lambda: error_line(target))
        finally:
            os.chmod(target / name, 0o755)
    assert str(target / name) in line and 'Permission denied' in line


def test_a_folder_below_a_closed_one_is_named() -> None:
    with tempfile.TemporaryDirectory(dir=OUTSIDE) as closed:  # mode 0700
        assert 'Permission denied' in _as_nobody(lambda: error_line(Path(closed) / 'set'))


def _as_nobody(call: Callable[[], str]) -> str:
    if os.geteuid() != 0:
        return call()
    os.seteuid(65534)  # root may read everything
    try:
        return call()
    finally:
        os.seteuid(0)


def test_an_empty_or_missing_folder_or_none_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    assert f'{tmp_path}/empty (empty)' in error_line(tmp_path / 'empty')
    assert f'{tmp_path}/missing (does not exist)' in error_line(tmp_path / 'missing')
    with pytest.raises(UserError, match=r'config\.dataset\.dir is empty'):
        input_pipeline.load(ConfigDict({'name': 'folder', 'dir': '', 'image_size': 8}))


def test_images_without_a_table_and_two_tables_are_named(folder: Path) -> None:
    (folder / 'sub').mkdir()
    (folder / 'sub' / 'labels.csv').write_text('file,label\n')
    assert 'sub/labels.csv' in error_line(folder)
    (folder / 'sub' / 'labels.csv').unlink()
    (folder / 'labels.csv').unlink()
    assert '4 files, no labels.csv' in error_line(folder)


def test_a_file_name_that_breaks_lines_or_is_not_utf8_stays_on_one_line(folder: Path) -> None:
    (folder / 'x\ny.png').write_bytes(PNG)
    assert 'x y.png: an image without a row' in error_line(folder)
    (folder / 'x\ny.png').unlink()
    with open(os.fsencode(folder) + b'/\xff.png', 'wb') as stream:
        stream.write(PNG)
    error_line(folder).encode()


def _rewrite(archive: Path, names: dict[str, str]) -> None:
    with zipfile.ZipFile(archive) as old:
        content = [(names.get(entry, entry), old.read(entry)) for entry in old.namelist()]
    with zipfile.ZipFile(archive, 'w') as new:
        for entry, data in content:
            new.writestr(entry, data)


@pytest.mark.parametrize('name', ['../a.png', '/a.png', 'x/../../a.png', '..\\a.png'])
def test_a_zip_with_a_path_that_leads_out_of_it_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(folder, tmp_path / 'set.zip')
    _rewrite(archive, {'a.png': name})
    assert 'set.zip: holds' in error_line(archive) and 'leads out' in error_line(archive)


@pytest.mark.parametrize('damage', ['cut', 'empty', 'text', 'inside', 'encrypted', 'duplicate', 'no table'])
def test_a_broken_zip_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    archive = zipped(folder, tmp_path / 'set.zip')
    data = bytearray(archive.read_bytes())
    if damage == 'inside':
        data[60] ^= 255  # the CRC notices
    elif damage == 'encrypted':
        data[data.index(b'PK\1\2') + 8] |= 1
        data[6] |= 1
    archive.write_bytes({'cut': data[:-60], 'empty': b'', 'text': b'<html>Sign in</html>'}.get(damage, data))
    if damage == 'duplicate':
        with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(archive, 'a') as new:
            new.writestr('a.png', PNG)
    elif damage == 'no table':
        _rewrite(archive, {'labels.csv': 'labels.txt'})
    assert 'set.zip' in error_line(archive)
