"""What a sweep trains: axes over config keys, the points they span, and a shard's share of them.

    seed=0:100                                       range, end excluded as in Python; 0:100:5 is every fifth
    balanced.epochs=4,8,12                           list; of single values, or of anything listed here
    model.filters=(16,32,64),(32,64,128)             list of tuples; names inside a tuple are quoted
    optimizer.peak_lr=log(1e-4,1e-2,5)               5 numbers at equal ratios, ends included
    model.dropout=lin(0,0.6,4)                       4 numbers at equal distances, ends included
    optimizer.peak_lr=loguniform(1e-4,1e-2,20,7)     20 random draws, uniform on the log scale, with seed 7
    augment.affine.zoom=uniform(0,0.2,20,7)          20 random draws with seed 7
    zip(balanced.epochs=4,8 imbalanced.epochs=2,4)   one axis of several keys that change together

Axes are separated by spaces; a sweep is their product. Spaced and drawn numbers are computed in decimal
arithmetic and rounded to 12 significant digits, and draws are raw words of PCG64, so that trial ids are the
same on every machine and with every version of numpy. Each key draws from a stream of its own, and more draws
with the same seed begin with the same numbers. Numbers that are written out stay as they are. Types are
checked here; which values a key allows, and which fit together, is checked per trial by trial.check.
"""

import ast
import collections
import contextlib
import dataclasses
import decimal
import itertools
import math
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bhcnet_jax import keys
from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Part
from bhcnet_jax.plan import table
from bhcnet_jax.plan.table import MAX_SEED

MAX_VALUES = 10**6  # of one range or call: a typing error must not fill the memory
MAX_POINTS = 10**6  # of a sweep
_KINDS = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a finite number',
    str: 'a name',
    tuple: 'a tuple',
}
_CALLS = {'lin': 'a,b,n', 'log': 'a,b,n', 'uniform': 'a,b,n,seed', 'loguniform': 'a,b,n,seed'}


@dataclasses.dataclass(frozen=True)
class Axis:
    """Config keys that change together (one, unless zipped); values[position] has one value for each key."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Share index (1 to count) of all trials; a trial's share does not depend on which others there are."""

    index: int
    count: int

    def takes(self, trial_id: str) -> bool:
        """Whether the trial of this id (hex digits) is in this share."""
        return int(trial_id, 16) % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """'2/3' is the second of three shards: they count from 1 to 3. UserError for anything else."""
    found = re.fullmatch(r'([1-9][0-9]{0,5})/([1-9][0-9]{0,5})', text)
    if not found or int(found[1]) > int(found[2]):
        raise UserError(f'Shard {_quote(text)}: expected i/n with i from 1 to n, as in 1/8.')
    return Shard(int(found[1]), int(found[2]))


def parse(text: str, config: ConfigDict) -> tuple[Axis, ...]:
    """The axes of a sweep in the module's grammar, none for ''. Values get the type of the key in config.

    UserError, one line that quotes the part, for: malformed text, an unknown key, a section, a key that
    belongs to no recipe, a key in two axes, an empty axis, a value of another type or twice, zipped axes of
    unequal length, more than MAX_POINTS points.
    """
    with _at('Sweep'):
        parts = _parts(text)
    leaves = dict(table.leaves(config))
    written = []
    for part in parts:
        with _at(f'Sweep, part {_quote(part)}'):
            written.append(_columns(part, leaves))
    uses = collections.Counter(column.key for columns in written for column in columns)
    for key, times in uses.items():
        if times > 1:
            raise UserError(f'Sweep: {key} is in {times} axes; expected one axis per key, so join them.')
    refuse_too_many(math.prod(columns[0].length for columns in written))
    axes = []
    for part, columns in zip(parts, written, strict=True):
        with _at(f'Sweep, part {_quote(part)}'):
            axes.append(_axis(columns))
    return tuple(axes)


def refuse_too_many(points: int) -> None:
    """UserError if a sweep has more points than one call can plan."""
    if points > MAX_POINTS:
        raise UserError(f'Sweep: {points:,} points; expected at most {MAX_POINTS:,}. Make several sweeps of it.')


def points(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """What each trial sets, by key: the axes' product, the last changing fastest; without axes one {}."""
    keys = [key for axis in axes for key in axis.keys]
    for rows in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip(keys, itertools.chain.from_iterable(rows), strict=True))


def count(axes: Sequence[Axis]) -> int:
    """How many points the axes span, without expanding them."""
    return math.prod(len(axis.values) for axis in axes)


def check_points(points: Sequence[Mapping[str, Any]], config: ConfigDict) -> tuple[dict[str, Any], ...]:
    """An explicit list of points, checked and converted as parse does; keys may differ from point to point.

    Numbers are taken as they are, not rounded. UserError, one line that names the place, as of parse.
    """
    if not points:
        raise UserError('config.trials is empty; expected one dict of keys and values per trial.')
    leaves, checked, seen = dict(table.leaves(config)), [], {}
    for place, point in enumerate(points):
        with _at(f'config.trials[{place}]'):
            checked.append(_check_point(point, leaves))
            first = seen.setdefault(tuple(sorted(checked[-1].items())), place)
            if first != place:
                raise UserError(f'the same as config.trials[{first}]; remove one.')
    return tuple(checked)


def refuse_overlap(axes: Sequence[Axis], points: Sequence[Mapping[str, Any]]) -> None:
    """UserError if a key is both in an axis and in a point of a list that the axes multiply."""
    for key in (key for axis in axes for key in axis.keys):
        if any(key in point for point in points):
            raise UserError(f'{key} is in the sweep and in config.trials; expected it in one of them.')


def _check_point(point: Mapping[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(point, Mapping):
        raise UserError(f"found {_quote(point)}; expected a dict like {{'seed': 1, 'balanced.epochs': 4}}.")
    return {key: _convert(key, value, _default(key, leaves)) for key, value in point.items()}


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
    """Puts the place before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{place}: {error}') from None


def _quote(value: Any) -> str:
    quoted = repr(value)
    return quoted if len(quoted) <= 80 else f'{quoted[:60]}...{quoted[-15:]}'


def _parts(text: str) -> list[str]:
    return [part for part in _split(' '.join(text.split()), ' ') if part]


def _split(text: str, separator: str) -> list[str]:
    """The pieces of text between separators (a single character) outside brackets and quotes."""
    pieces, opened = [''], []
    for found in re.finditer(r'"[^"]*"|\'[^\']*\'|.', text):
        token = found[0]
        if token in ('"', "'"):
            raise UserError(f'a quote is not closed: {_quote(text[found.start() :])}.')
        if token in (')', ']') and not opened:
            raise UserError(f'a bracket was not opened: {_quote(text[: found.end()])}.')
        if token == separator and not opened:
            pieces.append('')
            continue
        pieces[-1] += token
        if token in ('(', '['):
            opened.append(found.start())
        elif token in (')', ']'):
            opened.pop()
    if opened:
        raise UserError(f'a bracket is not closed: {_quote(text[opened[0] :])}.')
    return pieces


def _default(key: str, leaves: dict[str, Any]) -> Any:
    """The config's value for a key. UserError if there is no such key or it cannot be swept."""
    parts = {each.part for name, each in table.keys().items() if f'{name}.'.startswith(f'{key}.')}
    if parts == {Part.CALL}:
        raise UserError(f'{key} belongs to no recipe and cannot be swept; set it once, for all trials.')
    if key in leaves:
        return leaves[key]
    inside = [name for name in leaves if name.startswith(f'{key}.')]
    if inside:
        raise UserError(f'{key} is a section; sweep one of its keys: {", ".join(inside)}.')
    raise UserError(f'no key {_quote(key)}; {keys.hint(str(key), leaves)}')


class _Values(NamedTuple):
    """Values that are counted before they are made."""

    length: int
    make: Callable[[], Iterable[Any]]


class _Column(NamedTuple):
    """A key and its values as written: not made yet, and of any type."""

    key: str
    default: Any
    items: list[_Values]

    @property
    def length(self) -> int:
        return sum(item.length for item in self.items)

    def values(self) -> list[Any]:
        made = itertools.chain.from_iterable(item.make() for item in self.items)
        return [_convert(self.key, each, self.default) for each in made]


def _columns(part: str, leaves: dict[str, Any]) -> list[_Column]:
    """The columns of an axis, equally long: one, unless zipped."""
    zipped = re.fullmatch(r'zip\((.*)\)', part)
    parts = _parts(zipped[1]) if zipped else [part]
    if not parts:
        raise UserError('empty; expected axes, as in zip(balanced.epochs=4,8 imbalanced.epochs=2,4).')
    columns = [_column(each, leaves) for each in parts]
    lengths = [column.length for column in columns]
    if len(set(lengths)) > 1:
        raise UserError(f'zipped axes of {", ".join(map(str, lengths))} values; expected as many of each.')
    return columns


def _axis(columns: Sequence[_Column]) -> Axis:
    rows = tuple(zip(*(column.values() for column in columns), strict=True))
    seen = set()
    for row in rows:
        if row in seen:
            twice = row if len(row) > 1 else row[0]
            raise UserError(f'{_quote(twice)} comes twice; expected every value once.')
        seen.add(row)
    return Axis(tuple(column.key for column in columns), rows)


def _column(part: str, leaves: dict[str, Any]) -> _Column:
    """That of 'key=values'."""
    key, equals, text = part.partition('=')
    if not equals or not re.fullmatch(r'[A-Za-z_][\w.]*', key):
        raise UserError(f'found {_quote(part)}; expected key=values without spaces, or zip(axis axis).')
    default = _default(key, leaves)
    if not text:
        raise UserError(f'no values for {key}; expected some, like {key}={default!r}.')
    return _Column(key, default, [_expand(key, item, default) for item in _split(text, ',')])


def _expand(key: str, text: str, default: Any) -> _Values:
    """The values of one item of a list: a range, a call like log(1,10,2), or a single value."""
    if not text:
        raise UserError(f'an empty value for {key}; expected values between commas, without spaces.')
    if re.fullmatch(r'-?\w*(:-?\w*)+', text):
        whole = _range(text)
        return _Values(len(whole), lambda: whole)
    call = re.fullmatch(r'([a-z]+)\((.*)\)', text)
    if call and call[1] in _CALLS:
        return _numbers(key, call[1], call[2])
    value = _literal(key, text, default)
    return _Values(1, lambda: [value])


def _range(text: str) -> range:
    found = re.fullmatch(r'(-?[0-9]{1,18}):(-?[0-9]{1,18})(?::(-?[0-9]{1,18}))?', text)
    if not found or (found[3] and int(found[3]) == 0):
        raise UserError(f'found {_quote(text)}; expected start:end or start:end:step in whole numbers.')
    whole = range(*(int(each) for each in found.groups() if each))
    if not whole:
        raise UserError(f'{text} is empty; expected a range with values, for the end is excluded.')
    if whole[MAX_VALUES:]:
        raise UserError(f'{text} has more than {MAX_VALUES:,} values; expected fewer.')
    return whole


def _numbers(key: str, name: str, text: str) -> _Values:
    """The numbers of a call: at equal steps or drawn, in the key's own stream."""
    call, usage = _quote(f'{name}({text})'), f'{name}({_CALLS[name]})'
    arguments = text.split(',')
    if len(arguments) != len(_CALLS[name].split(',')):
        raise UserError(f'{call} has {len(arguments)} arguments; expected {usage}.')
    low, high = (_decimal(each, usage) for each in arguments[:2])
    length, *seed = (_whole(each, usage) for each in arguments[2:])
    if name.startswith('log') and min(low, high) <= 0:
        raise UserError(f'{call} reaches {min(low, high)}; expected ends above 0.')
    if seed and low >= high:
        raise UserError(f'{call} draws from {low} to {high}; expected the smaller end first.')
    smallest = 1 if seed else 2
    if not smallest <= length <= MAX_VALUES:
        raise UserError(f'{call} has n={length}; expected {smallest} to {MAX_VALUES:,}.')

    def make() -> list[int | float]:
        if seed:  # a word w lies w / 2**64 of the way from low to high
            places, whole = np.random.PCG64([seed[0], *key.encode()]).random_raw(length).tolist(), 2**64
        else:
            places, whole = range(length), length - 1
        return _between(low, high, places, whole, logarithmic=name.startswith('log'))

    return _Values(length, make)


def _between(
    low: decimal.Decimal, high: decimal.Decimal, places: Iterable[int], whole: int, *, logarithmic: bool
) -> list[int | float]:
    """The numbers at places/whole of the way from low to high, to 12 significant digits."""
    short = decimal.Context(prec=12)
    with decimal.localcontext(decimal.Context(prec=30)):  # ln and exp round correctly; those of libm differ
        if logarithmic:
            low, high = low.ln(), high.ln()
        reached = [low + (high - low) * place / whole for place in places]
        if logarithmic:
            reached = [each.exp() for each in reached]
    rounded = [short.plus(each) for each in reached]
    return [int(each) if each == each.to_integral_value() else float(each) for each in rounded]


def _decimal(text: str, usage: str) -> decimal.Decimal:
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return decimal.Decimal(text)
    raise UserError(f'{_quote(text)} in {usage}; expected a finite number.')


def _whole(text: str, usage: str) -> int:
    if not re.fullmatch(r'\s*[0-9]{1,10}\s*', text) or int(text) > MAX_SEED:
        raise UserError(f'{_quote(text)} in {usage}; expected a whole number from 0 to {MAX_SEED}.')
    return int(text)


def _literal(key: str, text: str, default: Any) -> Any:
    if isinstance(default, str) and re.fullmatch(r'[\w.+/-]+', text):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        forms = ', '.join(['start:end', *(f'{name}({usage})' for name, usage in _CALLS.items())])
        hint = f' or {forms}' if type(default) in (int, float) else ''
        expected = f'{_KINDS[type(default)]}, like {default!r}'
        raise UserError(f'{_quote(text)} is no value of {key}; expected {expected}{hint}.') from None


def _convert(key: str, value: Any, default: Any) -> Any:
    """The value as the type that the key has in the config. UserError if it is of another."""
    kind = type(default)
    if kind is tuple and isinstance(value, tuple | list):
        return tuple(_convert(key, each, default[0]) if default else each for each in value)
    if kind in (bool, str) and isinstance(value, kind):
        return kind(value)
    if kind in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
        if kind is float and abs(value) < math.inf:
            with contextlib.suppress(OverflowError):
                return float(value) + 0.0  # -0.0 would be another trial than 0.0
    raise UserError(f'{key} is {_quote(value)}; expected {_KINDS[kind]}, like {default!r}.')
