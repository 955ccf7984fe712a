"""What a key of a config is: the values it allows, what they fix, and when a recipe has it.

A key is written down twice: with its default, unit and source in configs/base.py, and as a `Key` in plan/table.py or,
if it is a model's, in the file of its family in models/.
"""

import dataclasses
import difflib
import enum
import functools
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple


class Allowed(NamedTuple):
    """Which values a key may have. words: they complete 'expected ...'; accepts: whether a value is one of them."""

    words: str
    accepts: Callable[[Any], bool]


def between(low: float, high: float) -> Allowed:
    """Numbers from low to high, both included; only whole ones if the ends are of type int."""
    kinds = int if isinstance(low, int) else (int, float)

    def accepts(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return Allowed(f'{low} to {high}{", a whole number" if kinds is int else ""}', accepts)


def one_of(*choices: str) -> Allowed:
    """One of some names."""
    return Allowed(f'one of {", ".join(choices)}', lambda value: isinstance(value, str) and value in choices)


def matching(pattern: str, words: str) -> Allowed:
    """A text of a form; pattern: a regular expression for all of it."""
    return Allowed(words, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def tuple_of(each: Allowed) -> Allowed:
    """A tuple (or list) of one or more values that are allowed by themselves."""
    return Allowed(
        f'a tuple, each of it {each.words}',
        lambda value: isinstance(value, tuple | list) and len(value) > 0 and all(map(each.accepts, value)),
    )


flag = Allowed('True or False', lambda value: isinstance(value, bool))
text = Allowed('a text', lambda value: isinstance(value, str))


class Part(enum.Enum):
    """What the value of a key is part of."""

    PROGRAM = enum.auto()  # the compiled program: it fixes shapes or code paths
    TRACED = enum.auto()  # the numbers that a lane brings, `Lane.values`: other values compile nothing
    PLAN = enum.auto()  # what the host makes traced values of: phases, split, learning rates
    TRIAL = enum.auto()  # a trial, but no recipe: seed and fold
    CALL = enum.auto()  # no trial: labels, places of files, settings of the engine


class Switches(NamedTuple):
    """What decides which keys a recipe has."""

    phases: tuple[str, ...]
    model: str  # model.name
    policy: str  # augment.policy


NEVER = object()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
      name: with its sections, 'optimizer.peak_lr'.
      neutral: of a key that came after the first trials were trained, the value at which the code does what it did
        without it. At this value it is no part of an identity, so that rows from before are found again.
      when: whether a recipe has the key. What is not in use has no part in its identity.
    """

    name: str
    allowed: Allowed
    part: Part
    neutral: Any = NEVER
    when: Callable[[Switches], bool] = lambda switches: True

    @functools.cached_property
    def path(self) -> tuple[str, ...]:
        """Its sections and its own name."""
        return tuple(self.name.split('.'))


def hint(name: str, known: Collection[str]) -> str:
    """Which keys somebody may mean who writes one that is not known; the end of a sentence."""
    close = [each for each in known if each.endswith(f'.{name}')]  # without its section
    close = close or difflib.get_close_matches(name, known, n=1)
    return f'did you mean {" or ".join(close)}?' if close else 'every key is in configs/base.py.'
