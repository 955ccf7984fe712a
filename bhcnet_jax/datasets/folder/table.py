"""The csv of a labelled set, as people write it: which column is what, which file a row names, which label is 1."""

import collections
import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from absl import logging

from bhcnet_jax.datasets.folder.images import reason
from bhcnet_jax.errors import UserError

MAX_BYTES = 2**26  # of a csv
MAX_LINES = 2**20  # of a csv; as many as a spreadsheet has
# Names of columns, the preferred first; compared in small letters, with _ for spaces and hyphens.
FILE_NAMES = (
    'file', 'filename', 'file_name', 'filepath', 'file_path', 'path', 'image', 'image_path', 'image_name', 'image_id',
    'img', 'id',
)  # fmt: skip
LABEL_NAMES = ('label', 'labels', 'class', 'target', 'diagnosis', 'category', 'y')
GROUP_NAMES = ('group', 'patient', 'patient_id', 'patientid', 'subject', 'subject_id')
NUMBERED = ('negative', 'positive')  # names of the classes 0 and 1
_NUMBERS = {'0': '0', '0.0': '0', 'false': '0', '1': '1', '1.0': '1', 'true': '1'}
_SOUND = ('normal', 'healthy', 'negative', 'neg', 'control', 'benign', 'none', 'no')  # hardly meant by 'positive'


class Row(NamedTuple):
    """One image of a set as its csv or its folder says it.

    where: for messages; path: below the set's root; label: a word, or 0 or 1; further: cells of the other columns.
    """

    where: str
    path: str
    label: str
    group: str = ''
    further: tuple[str, ...] = ()


class Columns(NamedTuple):
    """Places of a csv's columns: of the file, the label and the group (None: there is none); the others' by name."""

    file: int
    label: int
    group: int | None
    further: dict[str, int]


class Paths:
    """Finds the file that a row means. paths: of all files, below root; folder: of the csv, below root."""

    def __init__(self, root: Path, folder: str, paths: Iterable[str]) -> None:
        below = (path for path in map(PurePosixPath, sorted(paths)) if path.is_relative_to(folder))
        self._paths = {str(path.relative_to(folder)): str(path) for path in below}
        self._roots = [PurePosixPath(real(root), folder) for real in (os.path.abspath, os.path.realpath)]
        self._by_name: dict[str, list[str]] = {}
        for path in map(PurePosixPath, self._paths):
            for name in {path.name.casefold(), path.stem.casefold()}:
                self._by_name.setdefault(name, []).append(str(path))

    def __iter__(self) -> Iterator[str]:
        """The paths of all files below the csv's folder."""
        return iter(self._paths.values())

    def find(self, cell: str, where: str) -> str:
        """The path of the one file that a cell means. UserError: there is none, or there are several.

        A cell is an absolute path or one below the csv's folder, or the end of one; then that in other case; then that
        without the file's extension.
        """
        path = PurePosixPath(unicodedata.normalize('NFC', cell).replace('\\', '/'))
        for root in self._roots:
            path = path.relative_to(root) if path.is_relative_to(root) else path
        name = str(path)
        if name in self._paths:
            return self._paths[name]
        near = self._by_name.get(path.name.casefold(), [])
        for file_key, cell_key in ((str, str), (str.casefold, str.casefold), (_stem, str.casefold)):
            found = [each for each in near if f'/{file_key(each)}'.endswith(f'/{cell_key(name)}')]
            if len(found) > 1:
                raise UserError(f'{where}: {name} is there twice ({found[0]}, {found[1]}). Remove one of them.')
            if found:
                return self._paths[found[0]]
        hint = f'Write paths as they are below {self._roots[0]}' if path.is_absolute() else 'Correct the name'
        raise UserError(f'{where}: no file {name}. {hint}, or remove the row.')


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix('')).casefold()


def lines(data: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of a csv's lines that are not empty. UserError: not UTF-8, no csv, or too long.

    Cells are separated by commas, semicolons or tabs, whichever the first line has most of.
    """
    if max(data.count(b'\n'), data.count(b'\r')) > MAX_LINES:
        raise UserError(f'{where}: more than {MAX_LINES} lines, expected one for each image.')
    first = data.split(b'\n', 1)[0].split(b'\r', 1)[0]
    delimiter = max(',;\t', key=lambda mark: first.count(mark.encode()))  # max: the first of equals
    text = io.TextIOWrapper(io.BytesIO(data), 'utf-8-sig', newline='')
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        for line in reader:
            cells = [cell.strip() for cell in line]
            if any(cells):
                yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{where}: not a csv in UTF-8 ({reason(error)}). Save it as such.') from error


def read_rows(
    data: bytes, where: str, paths: Paths, choose: Callable[[Sequence[str]], Columns], file_name: Callable[[str], str]
) -> tuple[tuple[str, ...], list[Row]]:
    """Names of the further columns of a csv, and its rows. UserError names the line.

    choose: from the header to the columns' places; file_name: from a cell to the file's name.
    """
    numbered = lines(data, where)
    header = next(numbered, (0, []))[1]
    columns = choose(header)
    rows: dict[str, Row] = {}
    for number, cells in numbered:
        at = f'{where}, line {number}'
        if len(cells) != len(header):
            raise UserError(f'{at}: {len(cells)} columns, expected {len(header)}.')
        path = paths.find(file_name(cells[columns.file]), at)
        if path in rows:
            raise UserError(f'{at}: {path} is listed twice. Remove one row.')
        label = _NUMBERS.get(cells[columns.label].casefold(), cells[columns.label])
        if not label:
            raise UserError(f'{at}: no label of {path}. Write one or remove the row.')
        group = '' if columns.group is None else cells[columns.group]
        rows[path] = Row(at, path, label, group, tuple(cells[place] for place in columns.further.values()))
    if not rows:
        raise UserError(f'{where}: no rows below the header, expected one for each image.')
    return tuple(columns.further), list(rows.values())


def choose_columns(header: Sequence[str], where: str, named: str) -> Columns:
    """Which column is what. named: 'FILE,LABEL' or 'FILE,LABEL,GROUP'; '': told from the names. UserError: cannot."""
    places = _named(header, where, named) if named else _told(header)
    if places is None:
        raise UserError(
            f'{where}: columns {", ".join(map(repr, header))}; expected file,label or file,label,group. Say which are '
            "those, as in --config.dataset.columns='image,finding'."
        )
    file, label, group = places
    further = {name: place for place, name in enumerate(header) if name and place not in places}
    if (header[file], header[label]) != ('file', 'label') or (group is not None and header[group] != 'group'):
        groups = '' if group is None else f', groups from {header[group]!r}'
        logging.warning('%s: images from %r, labels from %r%s.', where, header[file], header[label], groups)
    return Columns(file, label, group, further)


def _named(header: Sequence[str], where: str, named: str) -> tuple[int, int, int | None]:
    names = [name.strip() for name in named.split(',')]
    missing = [name for name in names if name not in header]
    if missing or len(set(names)) != len(names) or len(names) not in (2, 3):
        raise UserError(
            f'{where}: columns {", ".join(map(repr, header))}; config.dataset.columns is {named!r}, expected the names '
            'of the columns of files, of labels and, if there is one, of groups.'
        )
    file, label, *group = map(list(header).index, names)
    return file, label, group[0] if group else None


def _told(header: Sequence[str]) -> tuple[int, int, int | None] | None:
    """Places of file, label and group by the columns' names; the one column left may be the file's or the label's."""
    simple = [name.casefold().replace(' ', '_').replace('-', '_') for name in header]
    if len(set(simple)) != len(simple):
        return None
    file, label, group = (
        next((simple.index(name) for name in names if name in simple), None)
        for names in (FILE_NAMES, LABEL_NAMES, GROUP_NAMES)
    )
    left = [place for place, name in enumerate(simple) if name and place not in (file, label, group)]
    if len(left) == 1 and (file is None) != (label is None):
        file, label = (left[0] if place is None else place for place in (file, label))
    return None if file is None or label is None else (file, label, group)


def classify(rows: Sequence[Row], positive: str, where: str) -> tuple[list[int], tuple[str, str]]:
    """Labels 0 and 1 of the rows, and the names of both classes. UserError: not two classes, or positive is none.

    Words are compared whatever their case and sorted, as torchvision and Keras do; the second is positive.
    positive: the name of the class that is; '': as sorted.
    """
    counts = collections.Counter(row.label.casefold() for row in rows)
    names = {row.label.casefold(): row.label for row in rows}
    if len(names) > 2:
        _refuse_third(rows, counts)
    found = ['0', '1'] if set(names) <= {'0', '1'} else sorted(names)
    if len(found) < 2:
        raise UserError(f'{where}: one class ({rows[0].label!r}), expected two.')
    chosen = _NUMBERS.get(positive.casefold(), positive.casefold()) or found[1]
    if chosen not in found:
        listed = ', '.join(map(repr, names.values()))
        raise UserError(f'{where}: classes {listed}; config.dataset.positive is {positive!r}, expected one of them.')
    negative = found[1 - found.index(chosen)]
    if not positive and chosen in _SOUND:
        logging.warning(
            '%s: the positive class is %r, the second by name. For the other: --config.dataset.positive=%r.',
            *(where, names[chosen], names[negative]),
        )
    classes = NUMBERED if found == ['0', '1'] else (names[negative], names[chosen])
    return [int(row.label.casefold() == chosen) for row in rows], classes


def _refuse_third(rows: Sequence[Row], counts: collections.Counter[str]) -> None:
    """Names the first row of the class that is hardly meant: not 0 or 1, and the rarest."""
    odd = min(counts, key=lambda label: (label in ('0', '1'), counts[label]))
    row = next(row for row in rows if row.label.casefold() == odd)
    listed = ', '.join(map(repr, sorted(counts)[:5])) + (', ...' if len(counts) > 5 else '')
    raise UserError(
        f'{row.where}: label {row.label!r} of {row.path} makes {len(counts)} classes ({listed}), expected two, such as '
        '0 and 1. Leave images out or unite classes.'
    )
