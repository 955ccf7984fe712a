"""Finds a labelled image set in a folder or a zip and checks it, before anything is built from it."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image

from bhcnet_jax.datasets.folder.images import check_image, reason
from bhcnet_jax.errors import UserError

MAX_FILE_BYTES = 2**28  # of one file; a head-CT slice has 10^5
TABLE = 'labels.csv'


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set must look like. A further csv column, `group`, is always allowed.

    Attributes:
      header: names of the csv's columns: the image, its label 0 or 1.
      file_name: from the csv's first column to the image's file name.
      any_subfolder: True where the csv names files but not the subfolders that they lie in.
      image_format: Pillow's name of the only format allowed; None: all.
      class_counts: images labelled 0 and labelled 1; None: any number.
      published: the fingerprint of the published set; None where there is none.
    """

    header: tuple[str, str]
    file_name: Callable[[str], str]
    any_subfolder: bool = False
    image_format: str | None = None
    class_counts: tuple[int, int] | None = None
    published: str | None = None


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a folder or a zip; a zip is never unpacked to disk.

    Attributes:
      root: the folder or the zip.
      handles: from a file's path below root ('/' between its parts, Unicode NFC) to what `open` takes.
      open: from a handle to a readable binary stream.
    """

    root: Path
    handles: dict[str, Any]
    open: Callable[[Any], BinaryIO]

    def read(self, name: str) -> bytes:
        """One file's bytes. UserError where they cannot be read or exceed MAX_FILE_BYTES."""
        try:
            with self.open(self.handles[name]) as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        # RuntimeError: zipfile's way of saying encrypted or of an unknown compression.
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f'{self.root}/{name}: cannot be read ({reason(error)}). '
                'Check its permissions or download the set again.'
            ) from error
        if len(data) > MAX_FILE_BYTES:
            raise UserError(f'{self.root}/{name}: expected at most {MAX_FILE_BYTES} bytes. Scale it down.')
        return data


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the csv: the image's unique id, its label 0 or 1, its group or '', its path in Files."""

    id: str
    label: int
    group: str
    path: str


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Checked rows in the csv's order, and the files that they name.

    fingerprint: SHA-256, see `fingerprint`; the same for a zip and its unpacked folder.
    """

    files: Files
    rows: tuple[Row, ...]
    layout: Layout
    fingerprint: str

    def examples(self) -> Iterator[dict[str, Any]]:
        """image (the file's bytes, after a trial decoding), label, id, group. UserError names the file."""
        for row in self.rows:
            data = self.files.read(row.path)
            check_image(data, f'{self.files.root}/{row.path}', self.layout.image_format)
            yield {'image': data, 'label': row.label, 'id': row.id, 'group': row.group}


def fingerprint(records: Iterable[tuple[str, int, str, str]]) -> str:
    """SHA-256, hex, over (id, label, group, SHA-256 of the file) of every image in the set's order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record).encode() + b'\n')
    return digest.hexdigest()


def find(path: Path) -> Files:
    """The files of a folder or a zip; where a folder has no labels.csv but a zip with one, that zip's files.

    No files where path does not exist. UserError: unreadable, or several such zips.
    """
    try:
        if path.is_file():
            return _zip_files(path)
        files = _folder_files(path)
    except OSError as error:
        message = f'{error.filename}: cannot be read ({reason(error)}). Check its permissions.'
        raise UserError(message) from error
    if tables(files):
        return files
    zips = sorted(name for name in files.handles if name.lower().endswith('.zip'))
    archives = [_zip_files(files.handles[name]) for name in zips]
    archives = [archive for archive in archives if tables(archive)]
    if len(archives) > 1:
        names = ', '.join(archive.root.name for archive in archives)
        raise UserError(f'{path}: several zip files with {TABLE} ({names}), expected one. Name it.')
    return archives[0] if archives else files


def read(files: Files, layout: Layout) -> LabelledSet:
    """Checks the csv, every row's file and every file's row, and hashes the files; decodes no image yet."""
    csvs = tables(files)
    if len(csvs) != 1:
        found = ', '.join(csvs[:2]) or 'none'
        raise UserError(f'{files.root}: {len(csvs)} {TABLE} ({found}), expected one. Name its folder.')
    folder = str(PurePosixPath(csvs[0]).parent)
    paths = _paths_by_name(files, folder, layout)
    rows = _read_rows(files, csvs[0], paths, layout)
    _check_every_image_has_a_row(files, rows, paths)
    _check_counts(files, rows, layout)
    digests = (hashlib.sha256(files.read(row.path)).hexdigest() for row in rows)
    records = ((row.id, row.label, row.group, digest) for row, digest in zip(rows, digests, strict=True))
    return LabelledSet(files, rows, layout, fingerprint(records))


def tables(files: Files) -> list[str]:
    """Paths of all files named labels.csv, sorted."""
    return sorted(name for name in files.handles if PurePosixPath(name).name == TABLE)


def _is_hidden(name: str) -> bool:
    return any(part.startswith('.') or part == '__MACOSX' for part in PurePosixPath(name).parts)


def _folder_files(root: Path) -> Files:
    def unreadable(error: OSError) -> None:
        raise error  # os.walk would leave the folder out

    handles, seen = {}, set()
    if not root.exists():
        return Files(root, handles, Path.open)
    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        seen.add(os.path.realpath(folder))
        # A link may lead back to a folder above it.
        subfolders[:] = [sub for sub in subfolders if os.path.realpath(os.path.join(folder, sub)) not in seen]
        for path in (Path(folder, name) for name in names):
            relative = unicodedata.normalize('NFC', path.relative_to(root).as_posix())
            if path.is_file() and not _is_hidden(relative):  # a pipe would block on reading
                handles[relative] = path
    return Files(root, handles, lambda path: path.open('rb'))


def _zip_files(path: Path) -> Files:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f'{path}: not an intact zip ({reason(error)}). Download it again.') from error
    handles = {}
    for entry in archive.infolist():
        name = unicodedata.normalize('NFC', entry.filename.replace('\\', '/'))
        if name.startswith('/') or '..' in name.split('/'):
            raise UserError(f'{path}: holds {name!r}, a path that leads out. Download it again.')
        if name in handles:
            raise UserError(f'{path}: holds {name!r} twice. Download it again.')
        if not entry.is_dir() and not _is_hidden(name):
            handles[name] = entry
    return Files(path, handles, archive.open)


def _paths_by_name(files: Files, folder: str, layout: Layout) -> dict[str, list[str]]:
    """From a file's name as the csv has it to its paths in files, for all files below the csv's folder."""
    paths: dict[str, list[str]] = {}
    for path in map(PurePosixPath, sorted(files.handles)):
        if path.is_relative_to(folder):
            name = path.name if layout.any_subfolder else str(path.relative_to(folder))
            paths.setdefault(name, []).append(str(path))
    return paths


def _read_rows(files: Files, table: str, paths: dict[str, list[str]], layout: Layout) -> tuple[Row, ...]:
    where = f'{files.root}/{table}'
    try:
        text = files.read(table).decode('utf-8-sig')
        lines = csv.reader(io.StringIO(text, newline=''), strict=True)
        cells = [(lines.line_num, [cell.strip() for cell in line]) for line in lines]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{where}: not a csv in UTF-8 ({reason(error)}). Save it as such.') from error
    cells = [(number, line) for number, line in cells if any(line)]
    header = tuple(cells[0][1]) if cells else ()
    if header not in (layout.header, (*layout.header, 'group')):
        raise UserError(f'{where}: header {",".join(header)!r}, expected {",".join(layout.header)!r}.')
    rows: dict[str, Row] = {}
    for number, line in cells[1:]:
        row = _read_row(line, f'{where}, line {number}', len(header), paths, layout)
        if row.id in rows:
            raise UserError(f'{where}, line {number}: {row.id} is listed twice. Remove one row.')
        rows[row.id] = row
    if not rows:
        raise UserError(f'{where}: no rows below the header, expected one for each image.')
    return tuple(rows.values())


def _read_row(line: list[str], where: str, columns: int, paths: dict[str, list[str]], layout: Layout) -> Row:
    if len(line) != columns:
        raise UserError(f'{where}: {len(line)} columns, expected {columns}.')
    name = str(PurePosixPath(unicodedata.normalize('NFC', layout.file_name(line[0])).replace('\\', '/')))
    if line[1] not in ('0', '1'):
        raise UserError(f'{where}: label {line[1]!r} of {name}, expected 0 or 1.')
    found = paths.get(name, [])
    if not found:
        raise UserError(f'{where}: no file {name}. Download the set again or remove the row.')
    if len(found) > 1:
        raise UserError(f'{where}: {name} is there twice ({found[0]}, {found[1]}). Remove one of them.')
    image_id = PurePosixPath(name).stem if layout.any_subfolder else name
    return Row(image_id, int(line[1]), line[2] if columns > 2 else '', found[0])


def _check_counts(files: Files, rows: tuple[Row, ...], layout: Layout) -> None:
    positives = sum(row.label for row in rows)
    counts = (len(rows) - positives, positives)
    if layout.class_counts not in (None, counts):
        raise UserError(
            f'{files.root}: {counts[0]} images labelled 0 and {counts[1]} labelled 1, '
            f'expected {layout.class_counts[0]} and {layout.class_counts[1]}. For part of the set, use '
            'config.dataset.name=folder and a labels.csv of file,label.'
        )


def _check_every_image_has_a_row(files: Files, rows: tuple[Row, ...], paths: dict[str, list[str]]) -> None:
    extensions = Image.registered_extensions()
    listed = {row.path for row in rows}
    for path in itertools.chain.from_iterable(paths.values()):
        if path not in listed and PurePosixPath(path).suffix.lower() in extensions:
            raise UserError(f'{files.root}/{path}: an image without a row in {TABLE}. Add one or move it.')
