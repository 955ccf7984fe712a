"""Which settings a recipe of the results database has, and in which recipes differ."""

import contextlib
import pathlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from flax import traverse_util

from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import table, trial
from bhcnet_jax.plan.written import recipes
from bhcnet_jax.records import run_files

SPEAKING = ('model.name', 'model.dtype')  # keys whose values need no name beside them in a label
ORDER = ('phases', 'batch_size', 'dataset', 'split', 'model', 'optimizer', 'augment')  # in a label; then the phases
_LEFT_OUT = trial.NEUTRAL  # of identities, at these values

Settings = Mapping[str, Any]


def read(directories: Iterable[pathlib.Path], wanted: Collection[str]) -> dict[str, Settings]:
    """`of_recipes` from files of run directories; what cannot be read tells nothing."""
    sources = []
    for path in directories:
        with contextlib.suppress(UserError):
            sources.append((run_files.config(path), run_files.starts(path)))
    return of_recipes(sources, wanted)


def of_recipes(
    sources: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]], wanted: Collection[str]
) -> dict[str, Settings]:
    """recipe_id -> settings, dotted key -> value; without recipes that cannot be told.

    sources: what config.json and env.json of each run directory hold. wanted: recipe ids.
    """
    found: dict[str, Settings] = {}
    for written, starts in sources:
        if wanted - found.keys() and written.get('config', {}).get('phases'):  # the baselines' have none
            found |= {key: _settings(config) for key, config in recipes(written['config'], starts) if key in wanted}
    return found


def _settings(config: Mapping[str, Any]) -> Settings:
    left_out = {
        '.'.join((*section.path, name)): neutral
        for section in table.in_use(config, table.RECIPE)
        for name, neutral in section.neutral.items()
    }
    flat = left_out | traverse_util.flatten_dict(trial.resolve(config), sep='.')
    return {key: flat[key] for key in sorted(flat, key=_place)}


def _place(key: str) -> tuple[int, bool]:
    """Where a key stands in a label: by its section, the name of the network before its settings."""
    section = key.partition('.')[0]
    return ORDER.index(section) if section in ORDER else len(ORDER), key != 'model.name'


def varying(known: Sequence[Settings]) -> list[str]:
    """Keys with more than one value among the settings that are known; if there is none, keys that not all have.

    A key that only some have comes with another key's value, as those of a phase do.
    """
    known = [each for each in known if each]
    keys = dict.fromkeys(key for each in known for key in each)
    several = [key for key in keys if len({repr(each[key]) for each in known if key in each}) > 1]
    return several or [key for key in keys if not all(key in each for each in known)]


def differing(one: Settings, other: Settings) -> list[str]:
    """Keys in which two recipes differ, as one counts: keys that only one has come with another key's value."""
    both = [key for key in one if key in other and one[key] != other[key]]
    return both or sorted(one.keys() ^ other.keys())


def short(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, if it is that of no other."""
    last = key.rpartition('.')[2]
    return last if sum(each.rpartition('.')[2] == last for each in keys) == 1 else key


def usual(known: Sequence[Settings], keys: Sequence[str]) -> Settings:
    """Of these keys the value that more than half of the recipes with this key have, where there is one.

    If a single recipe has none of these settings on, as in `trial.NEUTRAL`, its values.
    """
    nothing_on = [each for each in known if all(key in each and each[key] == _LEFT_OUT.get(key) for key in keys)]
    if len(nothing_on) == 1:
        return {key: nothing_on[0][key] for key in keys}
    found = {}
    for key in keys:
        values = [each[key] for each in known if key in each]
        most = max(values, key=values.count)
        if 2 * values.count(most) > len(values):
            found[key] = most
    return found


def label(recipe: str, settings: Settings, keys: Sequence[str], usual: Settings) -> str:
    """A recipe's name with its settings of these keys, as far as they are there and not as usual.

    Phases continue a name that ends with the first of them: 'gru_balanced + imbalanced', 'balanced 24 epochs'.
    """
    unusual = [key for key in keys if key in settings and settings[key] != usual.get(key)]
    phases = settings.get('phases', ())
    epochs = [f'{phase}.epochs' for phase in phases]
    told = [_told(key, settings[key], keys) for key in unusual if key not in ('phases', *epochs)]
    if {'phases', *epochs} & set(unusual):
        course = _course(settings, [key in keys for key in epochs])
        if recipe == phases[0] or recipe.endswith(f'_{phases[0]}'):
            recipe = recipe.removesuffix(phases[0]) + course
        else:
            told.insert(0, course)
    return f'{recipe} ({", ".join(told)})' if told else recipe


def _course(settings: Settings, with_epochs: Sequence[bool]) -> str:
    """As in 'balanced 24 + imbalanced 4 epochs'. with_epochs: of each phase, whether its epochs are told."""
    parts = [f'{phase} {settings[f"{phase}.epochs"]}' if told else phase
             for phase, told in zip(settings['phases'], with_epochs, strict=True)]  # fmt: skip
    return ' + '.join(parts) + (' epochs' if any(with_epochs) else '')


def _told(key: str, value: Any, keys: Sequence[str]) -> str:
    """As in 'dropout 0.5', 'equalise', 'no equalise' and 'no weights_sha256'."""
    if isinstance(value, bool) or value == '':
        return f'{"" if value else "no "}{short(key, keys)}'
    return shown(value) if key in SPEAKING else f'{short(key, keys)} {shown(value)}'


def shown(value: Any) -> str:
    """A setting's value in words; of a SHA-256 its beginning."""
    if isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value):
        return value[:8]
    words = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    return ' + '.join(value) if words else str(value)


def labels(done: pd.DataFrame, known: Mapping[str, Settings]) -> dict[str, str]:
    """recipe_id -> its label: its name; where several share one, with what is not as in most of them, else the id.

    done: rows with recipe and recipe_id. known: settings by recipe id, as far as they can be told.
    """
    name_of = dict(zip(done.recipe_id, done.recipe, strict=True))
    found = {}
    for name in dict.fromkeys(name_of.values()):
        sharing = [each for each in name_of if name_of[each] == name]
        of_sharing = [known[each] for each in sharing if known.get(each)]
        keys = varying(of_sharing)
        most = usual(of_sharing, keys)
        for recipe_id in sharing:
            told = label(name, known[recipe_id], keys, most) if keys and known.get(recipe_id) else (
                f'{name} ({recipe_id[:8]})')  # fmt: skip
            found[recipe_id] = told if len(sharing) > 1 else name
    repeated = {label for label, count in Counter(found.values()).items() if count > 1}
    return {each: f'{label} {each[:8]}' if label in repeated else label for each, label in found.items()}
