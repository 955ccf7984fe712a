"""Which settings a recipe of the results database has, and in which recipes differ."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flax import traverse_util

from bhcnet_jax.plan import trial
from bhcnet_jax.plan.written import recipes

SPEAKING = ('model.dtype',)  # keys whose values need no name beside them in a label
_LEFT_OUT = trial.NEUTRAL  # of identities, at these values

Settings = Mapping[str, Any]


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
    return _LEFT_OUT | traverse_util.flatten_dict(trial.resolve(config), sep='.')


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
    """Of these keys the value that more than half of the recipes have, where there is one."""
    found = {}
    for key in keys:
        values = [each[key] for each in known if key in each]
        most = max(values, key=values.count)
        if 2 * values.count(most) > len(known):
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
    """As in 'dropout 0.5', 'equalise' and 'no equalise'."""
    if isinstance(value, bool):
        return f'{"" if value else "no "}{short(key, keys)}'
    return shown(value) if key in SPEAKING else f'{short(key, keys)} {shown(value)}'


def shown(value: Any) -> str:
    """A setting's value in words."""
    words = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    return ' + '.join(value) if words else str(value)
