"""Damages images, csv files and zips at random: each must end in a right result or in one line.

    python tests/fuzz_intake.py [COUNT [SEED]]

COUNT images (default 2000), and a quarter as many csv files and zips each. Prints the counts, the slowest case and the
peak of memory. Exit code 1: a case ended otherwise; its file is kept.
"""

import collections
import io
import pathlib
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable

import numpy as np
from absl import logging
from PIL import Image

from bhcnet_jax.datasets.folder import images, source
from bhcnet_jax.errors import UserError

SAVED = [
    *((mode, kind, {}) for mode in ('1', 'L', 'P', 'RGB') for kind in ('PNG', 'TIFF', 'BMP', 'GIF')),
    *((mode, 'PPM', {}) for mode in ('1', 'L', 'RGB')),
    *((mode, kind, {}) for mode in ('LA', 'RGBA', 'I;16') for kind in ('PNG', 'TIFF')),
    *((mode, kind, {}) for mode in ('L', 'RGB', 'CMYK') for kind in ('JPEG', 'TIFF')),
    *((mode, kind, {}) for mode in ('RGB', 'RGBA') for kind in ('WEBP', 'JPEG2000')),
    *(('L', 'TIFF', {'compression': each}) for each in ('tiff_lzw', 'tiff_deflate', 'packbits', 'jpeg')),
    *(('RGB', kind, {'save_all': True, 'append_images': [Image.new('RGB', (30, 30))]})
      for kind in ('PNG', 'GIF', 'WEBP', 'TIFF', 'MPO')),
]  # fmt: skip
CSVS = (
    'file,label,group\na.png,0,p\nb.png,1,q\nc.png,0,p\nd.png,1,\n',
    'image;age;finding\na.png;3;no\n"b.png";4;yes\nc.png;5;no\nd.png;6;yes\n',
    '\ufefffile\tlabel\r\nA.PNG\tfalse\r\n./b\ttrue\r\nc\t0.0\r\nd\t1.0\r\n',
)
PIECES = (b'', b'\0', b'\n', b'\r', b'"', b',', b';', b'\t', b'\xff', b'0', b'..', b'/', b'PK', b'\xff\xff\xff\xff')


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: a byte, a bit, a run of bytes cut, doubled or replaced, or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # Half of all changes hit the first hundred bytes, where headers are.
        start = int(rng.integers(min(len(changed), 100 if rng.random() < 0.5 else len(changed)) or 1))
        stop = start + int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0:
            changed[start : start + 1] = bytes([rng.integers(256)])
        elif kind == 1 and changed:
            changed[min(start, len(changed) - 1)] ^= 1 << rng.integers(8)
        elif kind == 2:
            changed[start:stop] = PIECES[rng.integers(len(PIECES))]
        elif kind == 3:
            changed[start:start] = changed[start:stop]
        elif kind == 4:
            changed[start:stop] = bytes(stop - start)
        elif rng.random() < 0.2:
            del changed[int(rng.integers(len(changed) + 1)) :]
    return bytes(changed)


def picture(rng: np.random.Generator, place: int) -> tuple[bytes, str]:
    mode, kind, options = SAVED[place % len(SAVED)]
    pixels = rng.integers(0, 256, (30, 30), np.uint8)
    grey = pixels.astype(np.uint16) * 257 if mode == 'I;16' else pixels
    image = Image.fromarray(grey) if mode in ('I;16', 'L') else Image.fromarray(pixels).convert(mode)
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue(), f'{mode} {kind}'


def read_image(data: bytes, path: pathlib.Path) -> None:
    read = images.read(data, str(path))
    with images.open_image(read['image'], ('PNG',)) as grey:
        grey.load()
        assert grey.mode == 'L' and grey.info == {}, (grey.mode, grey.info)
    assert read['file_bytes'] == len(data) and read['bits'] <= 32


def read_set(path: pathlib.Path) -> None:
    found = source.read(source.find(path), source.Layout())
    records = list(found.records())
    assert {record['label'] for record in records} <= {0, 1}
    assert len({record['id'] for record in records}) == len(records) > 0
    assert all(len(cells) == len(records) for cells in found.columns.values())


def read_csv(data: bytes, path: pathlib.Path) -> None:
    (path / 'labels.csv').write_bytes(data)
    read_set(path)


def read_zip(data: bytes, path: pathlib.Path) -> None:
    (path / 'set.zip').write_bytes(data)
    read_set(path / 'set.zip')


def zipped(folder: pathlib.Path, rng: np.random.Generator) -> bytes:
    written = io.BytesIO()
    kind = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[rng.integers(4)]
    with zipfile.ZipFile(written, 'w', kind) as archive:
        for path in sorted(folder.rglob('*.*')):
            archive.write(path, path.relative_to(folder))
    return written.getvalue()


class Tally:
    """Counts how cases ended, and keeps the slowest."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.slowest = (0.0, '')

    def run(self, name: str, data: bytes, path: pathlib.Path, read: Callable[[bytes, pathlib.Path], None]) -> None:
        began = time.perf_counter()
        try:
            read(data, path)
            ended = 'right'
        except UserError as error:
            assert str(error).isprintable(), error
            ended = 'one line'
        except BaseException:
            kept = pathlib.Path(tempfile.mkdtemp()) / 'case'
            kept.write_bytes(data)
            print(f'{name}: kept as {kept}', flush=True)
            raise
        self.counts[ended] += 1
        self.slowest = max(self.slowest, (time.perf_counter() - began, name))

    def say(self, what: str) -> None:
        seconds, name = self.slowest
        ends = ', '.join(f'{count} {ended}' for ended, count in sorted(self.counts.items()))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f'{what}: {ends}; slowest {seconds:.2f} s ({name}); peak memory {memory} MB', flush=True)


def main(count: int = 2000, seed: int = 0) -> None:
    logging.set_verbosity(logging.ERROR)
    rng = np.random.default_rng(seed)
    tally = Tally()
    for place in range(len(SAVED)):
        data, name = picture(rng, place)
        tally.run(name, data, pathlib.Path('x'), read_image)
    sound = len([options for _, _, options in SAVED if 'save_all' not in options])
    assert tally.counts['right'] == sound, tally.counts  # the others have two pages
    tally = Tally()
    for place in range(count):
        data, name = picture(rng, place)
        tally.run(name, damage(data, rng), pathlib.Path('x'), read_image)
    tally.say(f'{count} images')
    root = pathlib.Path(tempfile.mkdtemp())
    tables, classes = root / 'tables', root / 'classes'
    for folder, name in ((tables, '.'), (classes, 'no'), (classes, 'yes')):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for each in 'abcd':
            Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(folder / name / f'{each}.png')
    tally = Tally()
    for place in range(count // 4):
        tally.run('csv', damage(CSVS[place % len(CSVS)].encode(), rng), tables, read_csv)
    tally.say(f'{count // 4} csv files')
    (tables / 'labels.csv').write_text(CSVS[0])
    tally = Tally()
    for place in range(count // 4):
        tally.run('zip', damage(zipped((tables, classes)[place % 2], rng), rng), root, read_zip)
    tally.say(f'{count // 4} zips')
    shutil.rmtree(root)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
