"""Configs from what a run directory holds: the database has the ids of recipes, config.json and env.json the way there.

config.json has the config, env.json the starts with their sweeps. Expanded again they give configs with the ids of
their recipes; believe only those whose id is in the database.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import sweep, trial
from bhcnet_jax.plan.splits import NO_SPLIT

NO_RECIPE = ('seed', 'split.fold')  # keys that do not change the recipe


def recipes(written: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every recipe that a run directory was asked for: its id and its config.

    written: what config.json says under 'config'. starts: what env.json says.
    """
    listed = [tuples(point) for point in written.get('trials') or ({},)]
    tree = complete({**written, 'trials': ()})
    for axes in dict.fromkeys([tree['sweep'], *map(_sweep, starts)]):
        try:
            parsed = sweep.parse(axes, ConfigDict(tree))
            sweep.refuse_too_many(len(listed) * sweep.count(parsed))
            yield from (_identify(tree, {**one, **other}) for one in listed for other in _points(parsed))
        except (UserError, KeyError, TypeError, ValueError):  # a key of another version: these stay unknown
            continue


def asked(written: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> int | None:
    """How many trials a run directory was asked for, over all its starts.

    None where a key is of another version, or where they are more than one call can plan.
    written, starts: as of `recipes`.
    """
    tree = complete({**written, 'trials': ()})
    listed = [tuples(point) for point in written.get('trials') or ({},)]
    try:
        parsed = [sweep.parse(axes, ConfigDict(tree)) for axes in dict.fromkeys(map(_sweep, starts))]
        sweep.refuse_too_many(len(listed) * sum(map(sweep.count, parsed)))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    points = [{**one, **other} for axes in parsed for one in listed for other in sweep.points(axes)]
    unswept = traverse_util.flatten_dict(tree, sep='.')
    keys = list(dict.fromkeys(key for point in points for key in point))
    return len({repr([point.get(key, unswept.get(key)) for key in keys]) for point in points})


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A config from a part of it that was read from JSON.

    Keys that came after it was written get the values that change nothing, as in `trial.NEUTRAL`.
    """
    return _over(base.get_config().to_dict(), tuples(tree))


def _points(axes: Sequence[sweep.Axis]) -> Iterator[Mapping[str, Any]]:
    return sweep.points([axis for axis in axes if set(axis.keys) - set(NO_RECIPE)])


def _identify(tree: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    config = trial.set_point(tree, point)
    return trial.identify(config, NO_SPLIT, '').recipe_id, config  # it does not depend on the split


def _sweep(start: Mapping[str, Any]) -> str:
    """The axes of a start, '' for none: as recorded, else as its command names them."""
    if start.get('sweep'):
        return start['sweep']
    try:
        words = shlex.split(start.get('command', ''))
    except ValueError:
        return ''
    for place, word in enumerate(words):
        name, equals, value = word.partition('=')
        if name in ('--sweep', '-sweep', '--config.sweep'):
            return value if equals else ''.join(words[place + 1 : place + 2])
    return ''


def tuples(tree: Any) -> Any:
    """What was read from JSON, its lists as the tuples that they were."""
    if isinstance(tree, Mapping):
        return {key: tuples(value) for key, value in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree


def _over(default: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(default)
    for key, value in tree.items():
        both = isinstance(value, Mapping) and isinstance(default.get(key), Mapping)
        merged[key] = _over(default[key], value) if both else value
    return merged
