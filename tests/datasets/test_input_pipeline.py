"""From published bytes to uint8 arrays, and the life of the prepared copy on disk."""

import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from bhcnet_jax import machine
from bhcnet_jax.datasets import finding, input_pipeline, preprocessing
from bhcnet_jax.datasets.folder import images
from bhcnet_jax.errors import UserError

ROOT = Path(__file__).parents[2]
LOAD = """
import sys
from absl import flags
from ml_collections import ConfigDict
from bhcnet_jax.datasets import input_pipeline
flags.FLAGS.mark_as_parsed()
print(input_pipeline.load(ConfigDict({'name': 'folder', 'dir': sys.argv[1], 'image_size': 8})).fingerprint)
"""


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # tfds leaves empty folders there
    return tmp_path / 'tfds'


def png(image: Image.Image | np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, 'PNG', **options)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(images.read(data, 'x')['image'])) as converted:
        assert converted.mode == 'L'
        return np.asarray(converted)


def random(*shape: int, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape, dtype)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601


def folder_of(files: dict[str, bytes], root: Path) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    rows = (f'{name},{index % 2}\n' for index, name in enumerate(files))
    (root / 'labels.csv').write_text('file,label\n' + ''.join(rows))
    return root


def load(folder: Path, image_size: int = 8) -> input_pipeline.ImageSet:
    return input_pipeline.load(ConfigDict({'name': 'folder', 'dir': str(folder), 'image_size': image_size}))


def forget(data_dir: Path) -> None:
    """Has the prepared copies read again."""
    for path in data_dir.rglob('*.npz'):
        path.unlink()


def head(side: int, left: int, top: int, canvas: tuple[int, int], gain: float) -> Image.Image:
    """The same bright disc with a gradient and a dark hole, at a size, place and brightness."""
    row, column = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    disc = np.where(np.hypot(row, column) < 1, 150 + 60 * column + 20 * row, 0)
    disc[np.hypot(row + 0.3, column) < 0.25] *= 0.5
    pixels = np.zeros(canvas, np.uint8)
    pixels[top : top + side, left : left + side] = gain * disc
    return Image.fromarray(pixels)


def test_equalised_images_tell_neither_size_nor_place_nor_grey_levels(tmp_path: Path) -> None:
    heads = [head(64, 3, 5, (80, 70), 1.0), head(128, 20, 9, (150, 200), 0.5), head(96, 0, 0, (96, 96), 0.8)]
    folder = folder_of({f'{index}.png': png(each) for index, each in enumerate(heads)}, tmp_path / 'heads')
    dataset = ConfigDict({'name': 'folder', 'dir': str(folder), 'image_size': 64, 'equalise': True})
    image_set = input_pipeline.load(dataset)
    for other in image_set.images[1:]:
        # Where the resolution differs, edges do; the rest is the same head.
        assert np.median(np.abs(other.astype(int) - image_set.images[0])) <= 4
    plain = load(folder, 64)
    for statistic in (np.mean, np.std):
        before, after = (np.ptp(statistic(each.images, axis=(1, 2))) for each in (plain, image_set))
        assert after < before / 5
    np.testing.assert_array_equal(plain.thumbnails, image_set.thumbnails)
    assert plain.fingerprint == image_set.fingerprint


@pytest.mark.parametrize(('top', 'bottom', 'left', 'right'), [(3, 4, 3, 4), (2, 6, 2, 46), (22, 26, 22, 26)])
def test_an_image_that_would_spoil_equalise_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, top: int, bottom: int, left: int, right: int
) -> None:
    odd = np.zeros((48, 48), np.uint8)
    odd[top:bottom, left:right] = 255
    sound = {f'{side}.png': png(head(side, 2, 3, (60, 60), 1.0)) for side in (40, 16, 50)}
    dataset = {'name': 'folder', 'image_size': 64, 'equalise': True}
    folder = folder_of(sound | {'odd.png': png(odd)}, tmp_path / 'odd')
    side = min(bottom - top, right - left)
    with pytest.raises(UserError, match=f'to {side} x {side} pixels, the shorter side of the head in odd.png'):
        input_pipeline.load(ConfigDict(dataset | {'dir': str(folder)}))
    input_pipeline.load(ConfigDict(dataset | {'dir': str(folder_of(sound, tmp_path / 'sound'))}))
    assert 'reduces all images to 16 x 16 pixels, the shorter side of the head in 16.png' in caplog.text


@pytest.mark.parametrize('kind', ['grey png', 'colour png', 'colour ppm'])
def test_16_bits_of_which_12_are_used_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    twelve = random(9, 7, high=4096, dtype=np.uint16)
    twelve[0, 0] = 4095

    def stored(values: np.ndarray) -> bytes:
        return {'grey png': png, 'colour png': deep_png, 'colour ppm': deep_ppm}[kind](values)

    files = {'a.png': png(random(9, 7)), 'b.png': stored(twelve), 'c.png': stored(twelve)}
    load(folder_of(files, tmp_path / 'twelve'))
    (record,) = caplog.records
    line = record.getMessage()
    assert '2 of 3 images have 16 bits' in line and 'of 256 grey levels, the first b.png' in line
    assert int(line.split('keep only ')[1].split()[0]) in (16, 17)
    caplog.clear()
    load(folder_of(files | {'b.png': stored(twelve * 16), 'c.png': png(twelve * 16)}, tmp_path / 'sixteen'))
    assert not caplog.records


def deep_ppm(grey_values: np.ndarray) -> bytes:
    """Colours of 16 bits, all three the same."""
    height, width = grey_values.shape
    return f'P6 {width} {height} 65535\n'.encode() + np.repeat(grey_values, 3).astype('>u2').tobytes()


def deep_png(grey_values: np.ndarray) -> bytes:
    """Colours of 16 bits, all three the same."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    height, width = grey_values.shape
    rows = b''.join(b'\0' + np.repeat(row, 3).astype('>u2').tobytes() for row in grey_values)
    header = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    )


def test_an_image_without_a_head_is_equalised_whole() -> None:
    assert images.head_box(np.zeros((7, 9), np.uint8)) == (0, 0, 9, 7)
    flat = images.equalise(Image.fromarray(np.full((7, 9), 40, np.uint8)), 5)
    assert flat.size == (5, 5)
    assert np.ptp(np.asarray(flat)) == 0


def test_grey_is_kept_and_colour_becomes_luminance() -> None:
    grey_pixels, colour = random(9, 7), random(9, 7, 3)
    np.testing.assert_array_equal(grey(png(grey_pixels)), grey_pixels)
    np.testing.assert_array_equal(grey(png(np.repeat(grey_pixels[..., None], 3, axis=2))), grey_pixels)
    np.testing.assert_allclose(grey(png(colour)), luminance(colour), atol=0.51)


def test_an_opaque_alpha_channel_changes_no_pixel() -> None:
    colour = random(9, 7, 3)
    opaque = np.concatenate([colour, np.full((9, 7, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(grey(png(opaque)), grey(png(colour)))


def test_transparency_is_composited_on_black() -> None:
    rgba, grey_alpha = random(9, 7, 4), random(9, 7, 2)
    np.testing.assert_allclose(grey(png(rgba)), luminance(rgba[..., :3]) * (rgba[..., 3] / 255.0), atol=1.1)
    expected = grey_alpha[..., 0] * (grey_alpha[..., 1] / 255.0)
    np.testing.assert_allclose(grey(png(Image.fromarray(grey_alpha, 'LA'))), expected, atol=1.1)
    white_is_clear = grey(png(np.array([[255, 9]], np.uint8), transparency=255))
    np.testing.assert_array_equal(white_is_clear, [[0, 9]])


def test_a_palette_is_looked_up_and_its_transparency_is_black() -> None:
    palette_image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    palette_image.putpalette([255, 0, 0, 0, 255, 0, 200, 200, 200])
    np.testing.assert_array_equal(grey(png(palette_image)), [[76, 150, 200]])
    np.testing.assert_array_equal(grey(png(palette_image, transparency=2)), [[76, 150, 0]])


@pytest.mark.parametrize(
    ('mode', 'expected'), [('L', False), ('LA', False), ('I;16', False), ('RGB', True), ('P', True)]
)
def test_coloured_pixels_are_told_from_a_colour_mode(mode: str, expected: bool) -> None:
    pixels = random(9, 7, 3)
    if mode == 'I;16':
        image = Image.fromarray(random(9, 7, high=65536, dtype=np.uint16))
    else:
        image = Image.fromarray(pixels).convert(mode)
    assert images.is_coloured(image) == expected
    grey_in_colour_mode = Image.fromarray(np.repeat(pixels[..., :1], 3, axis=2))
    assert not images.is_coloured(grey_in_colour_mode)


def test_16_bits_are_scaled_not_clipped() -> None:
    deep = random(9, 7, high=65536, dtype=np.uint16)
    deep[0, :3] = 0, 65535, 257
    np.testing.assert_array_equal(grey(png(deep)), np.round(deep / 257.0))
    tiff = io.BytesIO()
    Image.fromarray(deep).save(tiff, 'TIFF')
    np.testing.assert_array_equal(grey(tiff.getvalue()), np.round(deep / 257.0))


def test_one_bit_is_black_and_white() -> None:
    np.testing.assert_array_equal(grey(png(Image.fromarray(np.array([[True, False]])))), [[255, 0]])


def test_an_image_is_turned_upright_by_its_exif_tag() -> None:
    pixels = random(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    np.testing.assert_array_equal(grey(png(pixels, exif=exif)), np.rot90(pixels, -1))
    deep = pixels.astype(np.uint16) * 257
    np.testing.assert_array_equal(grey(png(deep, exif=exif)), np.rot90(pixels, -1))


@pytest.mark.parametrize('shape', [(300, 200), (61, 43), (5, 7), (1, 1), (1, 4000)])
def test_the_resize_is_the_antialiased_bilinear_one_of_jax(shape: tuple[int, int]) -> None:
    pixels = random(*shape)
    published = png(pixels)
    record = images.read(published, 'x') | {'label': 1, 'id': 'x', 'group': ''}
    record = {key: value.encode() if isinstance(value, str) else value for key, value in record.items()}
    decoded = preprocessing.decode(record, 16)
    expected = jax.image.resize(pixels.astype(np.float32), (16, 16), 'linear', antialias=True)
    np.testing.assert_allclose(decoded['image'], expected, atol=1.01)
    assert decoded['image'].dtype == np.uint8
    assert (decoded['height'], decoded['width'], decoded['file_bytes']) == (*shape, len(published))


def test_fine_stripes_become_grey_not_moire(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    resized = load(folder_of({'a.png': png(stripes)}, tmp_path / 'set'), 32).images[0]
    assert np.abs(resized.astype(int) - 127).max() <= 20


def test_the_pixel_hash_sees_grey_pixels_and_nothing_else(tmp_path: Path) -> None:
    pixels = random(8, 8)
    files = {
        'grey.png': png(pixels),
        'colour.png': png(np.repeat(pixels[..., None], 3, axis=2)),
        'other_compression.png': png(pixels, compress_level=1),
        'one_pixel_off.png': png(np.where(np.arange(64).reshape(8, 8) == 9, pixels ^ 1, pixels)),
        'other_shape.png': png(pixels.reshape(4, 16)),
    }
    hashes = load(folder_of(files, tmp_path / 'set')).pixel_sha256
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes)) == 3


def test_the_fingerprint_is_sha256_over_ids_labels_groups_and_files(tmp_path: Path) -> None:
    files = {'a.png': png(random(3, 3)), 'é"b.png': png(random(4, 3))}
    folder = folder_of({'a.png': files['a.png']}, tmp_path / 'set')
    (folder / 'é"b.png').write_bytes(files['é"b.png'])
    (folder / 'labels.csv').write_text('file,label,group\na.png,1,p\n"é""b.png",0,\n')
    digests = [hashlib.sha256(data).hexdigest() for data in files.values()]
    lines = [json.dumps(['a.png', 1, 'p', digests[0]]), json.dumps(['é"b.png', 0, '', digests[1]])]
    expected = hashlib.sha256(''.join(line + '\n' for line in lines).encode()).hexdigest()
    assert load(folder).fingerprint == expected


def test_every_column_has_one_entry_for_each_image_in_order(tmp_path: Path) -> None:
    files = {f'{index:02d}.png': png(np.full((index + 1, 3), index, np.uint8)) for index in range(40)}
    loaded = load(folder_of(files, tmp_path / 'set'), 5)
    assert loaded.images.shape == (40, 5, 5)
    assert loaded.images[:, 2, 2].tolist() == list(range(40))
    assert loaded.heights.tolist() == list(range(1, 41)) and set(loaded.widths.tolist()) == {3}
    assert {array.dtype for array in (loaded.labels, loaded.heights, loaded.widths, loaded.file_bytes)} == {
        np.dtype(np.int32)
    }
    assert len(loaded.groups) == len(loaded.modes) == len(loaded.pixel_sha256) == 40


def test_a_prepared_copy_is_read_again_not_written_again(tmp_path: Path, data_dir: Path) -> None:
    folder = folder_of({'a.png': png(random(3, 3))}, tmp_path / 'set')
    first = load(folder)
    (record_file,) = data_dir.rglob('*.array_record*')
    assert record_file.parts[-4:-1] == ('folder', first.fingerprint, '2.0.0')
    written = record_file.stat().st_mtime_ns
    np.testing.assert_array_equal(load(folder, 4).images.shape, (1, 4, 4))
    assert record_file.stat().st_mtime_ns == written


@pytest.mark.parametrize('damage', ['truncated', 'zeros', 'missing', 'no json', 'empty folder', 'swapped'])
def test_a_damaged_prepared_copy_ends_in_one_line(tmp_path: Path, data_dir: Path, damage: str) -> None:
    folder = folder_of({'a.png': png(random(40, 40)), 'b.png': png(random(50, 40))}, tmp_path / 'set')
    load(folder)
    (record_file,) = data_dir.rglob('*.array_record*')
    content = record_file.read_bytes()
    if damage in ('missing', 'empty folder'):
        record_file.unlink()
    if damage in ('no json', 'empty folder'):
        for path in record_file.parent.glob('*.*'):
            path.unlink() if path.suffix in ('.json', '.txt') else None
    if damage == 'truncated':
        record_file.write_bytes(content[:-100])
    if damage == 'zeros':
        record_file.write_bytes(content[:200] + bytes(500) + content[700:])
    if damage == 'swapped':
        load(folder_of({'a.png': png(random(41, 40)), 'b.png': png(random(50, 40))}, tmp_path / 'other'))
        (other,) = set(data_dir.rglob('*.array_record*')) - {record_file}
        record_file.write_bytes(other.read_bytes())
    forget(data_dir)
    with pytest.raises(UserError, match=r'prepared copy is damaged .* Delete it') as caught:
        load(folder)
    assert str(record_file.parent) in str(caught.value)


def test_a_data_dir_that_cannot_be_written_ends_in_one_line(tmp_path: Path, data_dir: Path) -> None:
    folder = folder_of({'a.png': png(random(3, 3))}, tmp_path / 'set')
    data_dir.write_text('a file in place of the folder')
    with pytest.raises(UserError, match=r'cannot be written .* TFDS_DATA_DIR'):
        load(folder)


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path: Path, data_dir: Path) -> None:
    folder = folder_of({f'{index}.png': png(random(200, 200)) for index in range(6)}, tmp_path / 'set')
    program = (
        'import resource, signal\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        f'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n{LOAD}'
    )
    command = [sys.executable, '-c', program, str(folder)]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    *_, line = done.stderr.splitlines()
    assert line.startswith('bhcnet_jax.errors.UserError: ') and 'cannot be written (' in line and 'with room' in line
    assert not [path for path in data_dir.rglob('*') if path.is_file()]


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', [b'', b'{', b'[1]', b'\xff\xfe', b'{"name": 3, "splits": "x"}'])
def test_a_damaged_description_of_a_prepared_copy_ends_in_one_line(
    tmp_path: Path, data_dir: Path, name: str, content: bytes
) -> None:
    folder = folder_of({'a.png': png(random(40, 40)), 'b.png': png(random(50, 40))}, tmp_path / 'set')
    whole = load(folder)
    (path,) = data_dir.rglob(name)
    path.write_bytes(content)
    forget(data_dir)
    try:
        found = load(folder)
    except UserError as error:
        assert 'prepared copy is damaged' in str(error) and 'Delete it' in str(error)
    else:
        np.testing.assert_array_equal(found.images, whole.images)


def test_a_prepared_copy_is_for_its_owner_alone(tmp_path: Path, data_dir: Path) -> None:
    folder = folder_of({'a.png': png(random(3, 3))}, tmp_path / 'set')
    mask = os.umask(0o022)
    try:
        load(folder)
        (record_file,) = data_dir.rglob('*.array_record*')
        assert {path.stat().st_mode & 0o777 for path in record_file.parent.iterdir()} == {0o600}
        assert record_file.parent.stat().st_mode & 0o777 == 0o700
        assert data_dir.stat().st_mode & 0o777 == 0o755  # others may prepare sets of their own
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


def test_a_prepared_copy_holds_no_metadata(tmp_path: Path, data_dir: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text('PatientName', 'Ada Lovelace')
    data = png(random(30, 30), pnginfo=info)
    found = load(folder_of({'a.png': data}, tmp_path / 'set'))
    assert b'Ada Lovelace' in data
    assert not [path for path in data_dir.rglob('*') if path.is_file() and b'Lovelace' in path.read_bytes()]
    assert found.file_bytes.tolist() == [len(data)]


def test_a_data_dir_that_is_not_utf8_or_of_nobody_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of({'a.png': png(random(3, 3))}, tmp_path / 'set')
    monkeypatch.setenv('TFDS_DATA_DIR', os.fsdecode(os.fsencode(tmp_path) + b'/\xff'))
    with pytest.raises(UserError, match=r'TFDS_DATA_DIR .* is no name in UTF-8'):
        load(folder)
    monkeypatch.setenv('TFDS_DATA_DIR', '~nosuchuser/x')
    with pytest.raises(UserError, match=r'TFDS_DATA_DIR is .*no such user'):
        load(folder)


def test_images_are_decoded_by_as_many_threads_as_have_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {'SC_PAGE_SIZE': 4096, 'SC_AVPHYS_PAGES': 3 * input_pipeline.IMAGE_BYTES // 4096}
    monkeypatch.setattr(os, 'sysconf', pages.__getitem__)
    monkeypatch.setattr(machine, 'cores', lambda: 64)
    assert input_pipeline.threads() == 3
    pages['SC_AVPHYS_PAGES'] = 1
    assert input_pipeline.threads() == 1
    pages['SC_AVPHYS_PAGES'] = 2**40
    assert input_pipeline.threads() == 64


def test_an_unknown_name_or_an_impossible_size_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'head-ct', expected phantom, auto, head_ct, folder"):
        input_pipeline.load(ConfigDict({'name': 'head-ct', 'dir': '', 'image_size': 8}))
    with pytest.raises(UserError, match='image_size is 0'):
        load(tmp_path, 0)


def environment(folder: Path) -> dict[str, str]:
    path = f'{ROOT}:{os.environ.get("PYTHONPATH", "")}'
    return os.environ | {'TMPDIR': str(folder.parent), 'PYTHONPATH': path}


def start(folder: Path) -> subprocess.Popen[str]:
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen([sys.executable, '-c', LOAD, str(folder)], env=environment(folder), text=True, **pipes)


def wait_for(data_dir: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(data_dir.rglob(pattern)):
        assert time.monotonic() < deadline, f'no {pattern}'
        time.sleep(0.002)


@pytest.mark.slow
def test_processes_at_once_and_a_killed_one_leave_a_whole_copy(tmp_path: Path, data_dir: Path) -> None:
    image = png(random(250, 250))
    folder = folder_of({f'{index}.png': image for index in range(400)}, tmp_path / 'set')
    killed = start(folder)
    wait_for(data_dir, 'incomplete*/*.array_record*')
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(data_dir.glob('folder/*/2.0.0')), 'killed too late to tell anything'

    together = [start(folder), start(folder)]
    outputs = [process.communicate() for process in together]
    assert [process.returncode for process in together] == [0, 0], outputs
    assert outputs[0] == outputs[1] == (load(folder).fingerprint + '\n', '')
    assert len(list(data_dir.glob('folder/*/2.0.0'))) == 1


def test_the_banner_of_the_phantom_has_no_log_prefix(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.delenv('HEAD_CT_DIR', raising=False)
    finding.choose(ConfigDict({'name': 'auto', 'dir': '', 'image_size': 8}))
    banner = capfd.readouterr().err.strip().splitlines()
    assert banner[0] == banner[5] == '*' * 70
    assert banner[1].startswith('*  PHANTOM: no real images were found')
    assert all(line.startswith('*') and line.endswith('*') for line in banner[:6])
    assert banner[6].startswith('Looked in ') and len(banner) == 7
