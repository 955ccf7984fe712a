"""One published image: which files are opened, what their headers say, and the limits before anything is decoded."""

import ast
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import bhcnet_jax
from bhcnet_jax.datasets.folder import images
from bhcnet_jax.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (7, 9), np.uint8)


def grey_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(images.read(data, 'x')['image'])) as image:
        assert (image.mode, image.info) == ('L', {})
        return np.asarray(image)


def error_line(data: bytes, image_format: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        images.read(data, 'x', image_format)
    assert str(caught.value).startswith('x: ')
    return str(caught.value)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, image_format, **options)
    return written.getvalue()


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples of 1, 8, 12 or 16 bits, each row filled up to whole bytes, as TIFF has them."""
    if bits == 16:
        return values.astype(f'{order}u2').tobytes()
    digits = (values[..., None] >> np.arange(bits)[::-1]) & 1  # [H, W, bits]
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    values: np.ndarray, bits: int, order: str = '<', white_zero: bool = False, deflate: bool = False, **tags: int
) -> bytes:
    """A TIFF of one strip. values: int [H, W], 0 is black; tags: 't339' and its like add a tag or change one."""
    body = packed(2**bits - 1 - values if white_zero else values, bits, order)
    body = zlib.compress(body) if deflate else body
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits, 259: 8 if deflate else 1, 262: 0 if white_zero else 1, 273: 0,
               277: 1, 278: height, 279: len(body)} | {int(tag[1:]): value for tag, value in tags.items()}  # fmt: skip
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    directory = b''.join(struct.pack(f'{order}HHII', tag, 4, 1, value) for tag, value in sorted(entries.items()))
    magic = b'II' if order == '<' else b'MM'
    count = struct.pack(f'{order}H', len(entries))
    return magic + struct.pack(f'{order}HI', 42, 8) + count + directory + bytes(4) + body


@pytest.mark.parametrize('deflate', [False, True])
@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('white_zero', [False, True])
@pytest.mark.parametrize('bits', [1, 8, 12, 16])
def test_a_tiff_is_the_same_picture_in_any_depth_byte_order_and_sense_of_zero(
    bits: int, white_zero: bool, order: str, deflate: bool
) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, (5, 7))  # odd: rows of 12 bits end within a byte
    values[0, :2] = 0, 2**bits - 1
    expected = np.round(values * 255 / (2**bits - 1))
    np.testing.assert_array_equal(grey_of(tiff(values, bits, order, white_zero, deflate)), expected)


@pytest.mark.parametrize('bits', [8, 16])
def test_signed_greys_have_no_black_and_white(bits: int) -> None:
    assert 'signed grey' in error_line(tiff(np.zeros((4, 4), int), bits, t339=2))


@pytest.mark.parametrize('bits', [3, 10, 14, 24])
def test_a_depth_that_is_not_read_ends_in_one_line_that_says_what_to_do(bits: int) -> None:
    assert 'save it as PNG' in error_line(tiff(np.zeros((4, 8), int), 8, t258=bits))


def test_a_pgm_is_scaled_by_its_own_white() -> None:
    np.testing.assert_array_equal(grey_of(b'P5 2 1 4095\n' + struct.pack('>2H', 4095, 2047)), [[255, 127]])
    np.testing.assert_array_equal(grey_of(b'P5 2 1 65535\n' + struct.pack('>2H', 65535, 257)), [[255, 1]])


def test_a_jpeg_2000_of_16_bits_is_scaled() -> None:
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(grey_of(saved(Image.fromarray(deep), 'JPEG2000')), GREY)


@pytest.mark.parametrize('image_format', ['TIFF', 'GIF', 'PNG', 'WEBP', 'MPO'])
def test_a_file_of_many_pages_is_refused(image_format: str) -> None:
    pages = [Image.fromarray(np.full((20, 20), value, np.uint8)).convert('RGB') for value in (0, 128, 255)]
    stack = saved(pages[0], image_format, save_all=True, append_images=pages[1:])
    assert error_line(stack).startswith('x: 3 pages, expected one image')
    one = saved(pages[1], 'JPEG' if image_format == 'MPO' else image_format)
    assert abs(int(grey_of(one)[0, 0]) - 128) <= 1


@pytest.mark.parametrize('header', [b'P5 3 2 255\n', b'P5 3 2 65535\n', b'P6 3 2 255\n', b'P6 3 2 999\n', b'P4 3 2\n'])
def test_a_pnm_with_a_second_image_behind_the_first_is_refused(header: bytes) -> None:
    samples = 1 if header.startswith(b'P4') else 6
    samples *= (3 if header.startswith(b'P6') else 1) * (2 if header.split()[-1] in (b'65535', b'999') else 1)
    one = header + bytes(2 if header.startswith(b'P4') else samples)
    assert grey_of(one).shape == grey_of(one + b'\n').shape == (2, 3)
    assert error_line(one + one).startswith('x: several pages, expected one image')


OTHERS = ('EPS', 'TGA', 'ICO', 'PCX', 'SGI', 'DDS', 'DIB', 'PDF', 'MSP', 'XBM', 'SPIDER', 'AVIF')


@pytest.mark.parametrize('image_format', OTHERS)
def test_a_format_that_is_not_on_the_list_is_not_opened(
    image_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / 'started'
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {started}\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    mode = {'MSP': '1', 'XBM': '1', 'AVIF': 'RGB', 'SPIDER': 'F'}.get(image_format, 'L')
    assert 'not an image that is read (PNG, JPEG' in error_line(
        saved(Image.fromarray(GREY).convert(mode), image_format)
    )
    assert not started.exists()


def test_a_picture_inside_an_iptc_record_is_not_opened() -> None:
    eps = saved(Image.fromarray(GREY), 'EPS')
    fields = ((3, 60, b'\1\0'), (3, 65, b'\0'), (3, 20, b'\0\x09'), (3, 30, b'\0\x07'), (3, 120, b'\1'))
    record = b''.join(struct.pack('>BBBH', 28, *place, len(value)) + value for *place, value in fields)
    assert 'not an image that is read' in error_line(record + struct.pack('>BBBH', 28, 8, 10, len(eps)) + eps)


def test_nothing_but_open_image_opens_images() -> None:
    package = Path(bhcnet_jax.__file__).parent
    opening = [
        path.name
        for path in package.rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == 'Image.open'
    ]
    assert opening == ['images.py']


def test_extensions_are_those_of_the_formats_that_are_opened() -> None:
    assert {'.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.gif', '.webp', '.pgm', '.jp2'} <= images.EXTENSIONS
    assert not {'.eps', '.pdf', '.h5', '.hdf', '.grib', '.bufr', '.mpg', '.ps', '.wmf', '.iim'} & images.EXTENSIONS


def png_claiming(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(9)))


@pytest.mark.parametrize(('data', 'message'), [
    (png_claiming(2**14 + 1, 1), 'a side of 16385 pixels, expected at most 16384'),
    (png_claiming(1, 2**20), 'a side of 1048576 pixels'),
    (png_claiming(5793, 5793), '5793 x 5793 pixels'),
    (png_claiming(5792, 5792, 16, 2), '201283584 bytes of pixels, expected at most 134217728'),
    (png_claiming(5792, 5792, 16, 6), '268378112 bytes of pixels'),
    (tiff(np.zeros((4, 4), int), 8, t322=2**16, t323=2**16, t324=8, t325=16), 'a side of 65536 pixels'),
], ids=['wide', 'high', 'pixels', 'RGB of 16 bits', 'RGBA of 16 bits', 'tile'])  # fmt: skip
def test_an_image_beyond_a_limit_is_refused_by_its_header(data: bytes, message: str) -> None:
    assert message in error_line(data)


def cut_short(compression: str) -> bytes:
    """A compressed TIFF whose directory comes first and whose only strip ends in its midst."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 70), np.uint8)
    whole = saved(Image.fromarray(noise), 'TIFF', compression=compression)
    with Image.open(io.BytesIO(whole)) as image:
        code, offset, size = image.tag_v2[259], image.tag_v2[273][0], image.tag_v2[279][0]
    plain = tiff(noise.astype(int), 8, t259=code, t279=size)
    return plain[: -noise.size] + whole[offset : offset + size // 2]


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'jpeg'])
def test_of_a_tiff_cut_short_a_command_says_one_line(compression: str, tmp_path: Path) -> None:
    folder = tmp_path / 'cut'
    folder.mkdir()
    (folder / 'whole.png').write_bytes(saved(Image.fromarray(GREY), 'PNG'))
    (folder / 'cut.tif').write_bytes(cut_short(compression))
    (folder / 'labels.csv').write_text('file,label\nwhole.png,0\ncut.tif,1\n')
    child = subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.audit', f'--dir={folder}', f'--out={tmp_path}/audit.json'],
        env={**os.environ, 'TFDS_DATA_DIR': str(tmp_path / 'tfds')}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 2
    assert child.stderr.startswith('error: ') and 'cut.tif: ' in child.stderr
    assert child.stderr.count('\n') == 1, child.stderr


def test_what_a_file_says_beside_its_pixels_is_left_behind() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text('PatientName', 'Ada Lovelace')
    exif = Image.Exif()
    exif[0x010E] = 'Ada Lovelace'
    data = saved(Image.fromarray(GREY), 'PNG', pnginfo=info, exif=exif, icc_profile=b'Ada Lovelace')
    assert b'Ada Lovelace' in data
    read = images.read(data, 'x')
    assert not any(b'Ada' in value for value in read.values() if isinstance(value, bytes))
    np.testing.assert_array_equal(grey_of(data), GREY)
    assert read['file_bytes'] == len(data)
