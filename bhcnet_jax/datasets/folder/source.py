"""Finds a labelled image set in a folder or a zip and checks it, before anything is built from it."""

import dataclasses
import hashlib
import json
import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from bhcnet_jax.datasets.folder import images, table
from bhcnet_jax.datasets.folder.images import reason
from bhcnet_jax.datasets.folder.table import Columns, Paths
from bhcnet_jax.errors import UserError

MAX_FILE_BYTES = 2**28  # of one file; a head-CT slice has 10^5
TABLE = 'labels.csv'
PARTS = ('train', 'training', 'test', 'testing', 'val', 'valid', 'validation')  # folders of parts of a set, no classes


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set must look like; as it stands that of any labelled folder.

    Attributes:
      header: names of the csv's columns, of the image and its label, with `group` as a third; None: told by `table`.
      file_name: from the csv's cell to the image's file name.
      image_id: from the image's path below the csv's folder to its id.
      image_format: Pillow's name of the only format allowed; None: all that are read.
      class_names: of labels 0 and 1; None: as the csv or the folders name them.
      class_counts: images labelled 0 and labelled 1; None: any number.
      published: the fingerprint of the published set; None where there is none.
      name: of its tfds builder, and so of the folder of its prepared copies.
      how_to_get: where the images are to be had and put, for a user who has none.
    """

    header: tuple[str, str] | None = None
    file_name: Callable[[str], str] = str
    image_id: Callable[[str], str] = str
    image_format: str | None = None
    class_names: tuple[str, str] | None = None
    class_counts: tuple[int, int] | None = None
    published: str | None = None
    name: str = 'folder'
    how_to_get: str = (
        'Expected a folder or zip of images with labels.csv (file,label[,group]), or with a folder for each class.'
    )

    def columns(self, header: list[str], where: str, named: str) -> Columns:
        """Places of a csv's columns. UserError: another header than this layout has."""
        if self.header is None:
            return table.choose_columns(header, where, named)
        if tuple(header) not in (self.header, (*self.header, 'group')):
            raise UserError(f'{where}: header {",".join(header)!r}, expected {",".join(self.header)!r}.')
        return Columns(0, 1, 2 if len(header) > 2 else None, {})


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

    def read(self, name: str, limit: int) -> bytes:
        """One file's bytes. UserError where they cannot be read or exceed the limit."""
        try:
            with self.open(self.handles[name]) as stream:
                data = stream.read(limit + 1)
        except Exception as error:  # zipfile and its decompressors raise nearly anything on damaged input
            raise UserError(
                f'{self.root}/{name}: cannot be read ({reason(error)}). '
                'Check its permissions or download the set again.'
            ) from error
        if len(data) > limit:
            raise UserError(f'{self.root}/{name}: expected at most {limit} bytes. Scale it down.')
        return data


@dataclasses.dataclass(frozen=True)
class Example:
    """An image of a set: its unique id, its label 0 or 1, its group or '', its path in Files."""

    id: str
    label: int
    group: str
    path: str


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Checked examples in the order of the csv or of the folders, and the files that they are.

    class_names: of labels 0 and 1. columns: the csv's further columns, a cell for each example, by name.
    fingerprint: SHA-256, see `fingerprint`; the same for a zip and its unpacked folder.
    """

    files: Files
    examples: tuple[Example, ...]
    class_names: tuple[str, str]
    columns: dict[str, tuple[str, ...]]
    layout: Layout
    fingerprint: str

    def records(self) -> Iterator[dict[str, Any]]:
        """What is prepared of each example: label, id, group and the fields of `images.read`. UserError: a bad file."""
        for each in self.examples:
            data = self.files.read(each.path, MAX_FILE_BYTES)
            published = images.read(data, f'{self.files.root}/{each.path}', self.layout.image_format)
            yield published | {'label': each.label, 'id': each.id, 'group': each.group}


def fingerprint(records: Iterable[tuple[str, int, str, str]]) -> str:
    """SHA-256, hex, over (id, label, group, SHA-256 of the file) of every image in the set's order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record).encode() + b'\n')
    return digest.hexdigest()


def find(path: Path) -> Files:
    """As `listing`; where a folder holds no labelled set but a zip with one, that zip's files.

    UserError: unreadable, or several such zips.
    """
    files = listing(path)
    if path.is_file() or tables(files):
        return files
    zips = sorted(name for name in files.handles if name.lower().endswith('.zip'))
    archives = [_zip_files(files.handles[name]) for name in zips]
    labelled = [archive for archive in archives if tables(archive)]
    if not labelled and not class_folders(files):
        labelled = [archive for archive in archives if class_folders(archive)]
    if len(labelled) > 1:
        names = ', '.join(archive.root.name for archive in labelled)
        raise UserError(f'{path}: several zip files with labelled images ({names}), expected one. Name it.')
    return labelled[0] if labelled else files


def listing(path: Path) -> Files:
    """All files of a folder or a zip but hidden ones; none where path does not exist. UserError: unreadable."""
    try:
        return _zip_files(path) if path.is_file() else _folder_files(path)
    except OSError as error:
        message = f'{error.filename}: cannot be read ({reason(error)}). Check its permissions.'
        raise UserError(message) from error


def read(files: Files, layout: Layout, columns: str = '', positive: str = '') -> LabelledSet:
    """Checks the csv, every row's file and every file's row, and hashes the files; decodes no image yet.

    Without a csv the folders are the classes. columns, positive: see `table.choose_columns`, `table.classify`.
    """
    csvs = tables(files)
    if len(csvs) > 1 or (not csvs and (layout.header or not class_folders(files))):
        found = ', '.join(csvs[:2]) or 'none'
        raise UserError(f'{files.root}: {len(csvs)} {TABLE} ({found}), expected one. Name its folder.')
    if layout.class_names and (columns or positive):
        raise UserError(
            f'config.dataset.columns is {columns!r} and positive {positive!r}, but this set has a fixed form. '
            'Leave them out, or set config.dataset.name=folder.'
        )
    if csvs:
        folder, where = str(PurePosixPath(csvs[0]).parent), f'{files.root}/{csvs[0]}'
        names, rows = _table_rows(files, csvs[0], folder, layout, columns)
    else:
        folder, where = '.', str(files.root)
        names, rows = (), _folder_rows(files)
    labels, class_names = table.classify(rows, positive, where)
    if layout.class_names and class_names != table.NUMBERED:
        raise UserError(f'{where}: labels {" and ".join(map(repr, class_names))}, expected 0 and 1.')
    paths = (PurePosixPath(row.path).relative_to(folder).as_posix() for row in rows)
    ids = [layout.image_id(path) for path in paths]
    examples = tuple(
        Example(image_id, label, row.group, row.path)
        for image_id, label, row in zip(ids, labels, rows, strict=True)
    )
    _check_counts(files, examples, layout)
    digests = (hashlib.sha256(files.read(each.path, MAX_FILE_BYTES)).hexdigest() for each in examples)
    records = ((*dataclasses.astuple(each)[:3], digest) for each, digest in zip(examples, digests, strict=True))
    further = dict(zip(names, zip(*(row.further for row in rows), strict=True), strict=True))
    return LabelledSet(
        files, examples, layout.class_names or class_names, further, layout, fingerprint(records)
    )


def tables(files: Files) -> list[str]:
    """Paths of all files named labels.csv, sorted."""
    return sorted(name for name in files.handles if PurePosixPath(name).name == TABLE)


def class_folders(files: Files) -> dict[str, list[str]]:
    """The images in each folder, by the folder's name, sorted; '' for those beside the folders.

    Folders that hold nothing but one folder are passed. {} where there are no two folders.
    """
    paths = [PurePosixPath(name) for name in sorted(files.handles) if is_image(name)]
    depth = 0
    while paths and all(len(path.parts) > depth + 1 and path.parts[depth] == paths[0].parts[depth] for path in paths):
        depth += 1
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(path.parts[depth] if len(path.parts) > depth + 1 else '', []).append(str(path))
    return folders if len(folders.keys() - {''}) > 1 else {}


def is_laid_out(files: Files, layout: Layout) -> bool:
    """Whether the set has one csv, with the header of a layout that has a header."""
    csvs = tables(files)
    if len(csvs) != 1:
        return False
    where = f'{files.root}/{csvs[0]}'
    _, header = next(table.lines(files.read(csvs[0], table.MAX_BYTES), where), (0, []))
    return tuple(header[:2]) == layout.header


def is_image(name: str) -> bool:
    """Whether a path ends as the files of images do that are read."""
    return PurePosixPath(name).suffix.lower() in images.EXTENSIONS


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
    except Exception as error:  # zipfile raises nearly anything on damaged input
        raise UserError(f'{path}: not an intact zip ({reason(error)}). Download it again.') from error
    handles = {}
    for entry in archive.infolist():
        name = unicodedata.normalize('NFC', entry.filename.replace('\\', '/'))
        if name.startswith('/') or not {'', '.', '..'}.isdisjoint(name.removesuffix('/').split('/')):
            raise UserError(f'{path}: holds {name!r}, a path that leads out or nowhere. Download it again.')
        if name in handles:
            raise UserError(f'{path}: holds {name!r} twice. Download it again.')
        if not name.endswith('/') and not _is_hidden(name):
            handles[name] = entry
    return Files(path, handles, archive.open)


def _table_rows(
    files: Files, name: str, folder: str, layout: Layout, columns: str
) -> tuple[tuple[str, ...], list[table.Row]]:
    """Names of the csv's further columns, and its rows; every image below its folder must have one."""
    where = f'{files.root}/{name}'
    paths = Paths(files.root, folder, files.handles)
    further, rows = table.read_rows(
        files.read(name, table.MAX_BYTES), where, paths, lambda header: layout.columns(header, where, columns),
        layout.file_name,
    )  # fmt: skip
    listed = {row.path for row in rows}
    for path in paths:
        if path not in listed and is_image(path):
            raise UserError(f'{files.root}/{path}: an image without a row in {TABLE}. Add one or move it.')
    return further, rows


def _folder_rows(files: Files) -> list[table.Row]:
    """A row for each image of the class folders. UserError: parts of a set in place of classes, images beside them."""
    folders = class_folders(files)
    parts = [name for name in folders if name.casefold() in PARTS]
    if parts:
        raise UserError(
            f'{files.root}: {parts[0]!r} is a part of a set, expected a folder for each class. '
            'Name one part, or put the images of a class together.'
        )
    if '' in folders:
        raise UserError(f'{files.root}: {folders[""][0]} lies beside the folders of the classes. Move it.')
    rows = [table.Row(str(files.root), path, name) for name, paths in folders.items() for path in paths]
    for row in rows:
        try:
            row.path.encode()
        except UnicodeEncodeError as error:
            raise UserError(f'{files.root}/{row.path}: is no name in UTF-8. Rename it.') from error
    return rows


def _check_counts(files: Files, examples: tuple[Example, ...], layout: Layout) -> None:
    positives = sum(each.label for each in examples)
    counts = (len(examples) - positives, positives)
    if layout.class_counts not in (None, counts):
        raise UserError(
            f'{files.root}: {counts[0]} images labelled 0 and {counts[1]} labelled 1, '
            f'expected {layout.class_counts[0]} and {layout.class_counts[1]}. For part of the set, use '
            'config.dataset.name=folder and a labels.csv of file,label.'
        )
