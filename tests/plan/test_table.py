import numpy as np
import pytest

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import NEVER, Part
from bhcnet_jax.plan import table, trial


def test_the_table_and_base_have_the_same_keys():
    assert set(table.keys()) == {name for name, _ in table.leaves(base.get_config())}


def test_every_default_and_every_neutral_value_is_allowed():
    for name, value in table.leaves(base.get_config()):
        key = table.keys()[name]
        assert key.allowed.accepts(value), name
        assert key.neutral is NEVER or (key.allowed.accepts(key.neutral) and type(key.neutral) is type(value)), name


def test_families_that_share_a_key_share_what_it_means():
    for family in models.FAMILIES.values():
        for key in family.keys:
            assert table.keys()[key.name] is key


@pytest.mark.parametrize('policy', table.POLICIES)
@pytest.mark.parametrize('model', models.FAMILIES)
def test_a_lane_brings_the_traced_keys_that_are_in_use(model, policy):
    config = base.get_config()
    config.model.name, config.augment.policy = model, policy
    values = table.traced(config)
    assert {name for name in values if name.startswith('augment')} == {
        f'augment.{part}.{name}' for part in policy.split('+') if part != 'none' for name in config.augment[part]
    }
    assert values['optimizer.ema'] == 0.0  # neutral, and yet it is needed
    assert values['model.dropout'] == 0.5
    assert all(table.keys()[name].part is Part.TRACED for name in values)
    assert all(isinstance(value, float) for value in values.values())


def with_value(name, value):
    """A config in which a key has a value of any type, or is new."""
    config = base.get_config()
    *sections, own = name.split('.')
    section = config
    for each in sections:
        section = section[each]
    with section.ignore_type():
        section[own] = value
    return config


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('optimizer.learning_rate', 0.1, r'^optimizer.learning_rate: no such key; did you mean optimizer.peak_lr\?$'),
        ('zoom', 0.1, r'^zoom: no such key; did you mean augment.affine.zoom\?$'),
        ('qqq', 0.1, r'^qqq: no such key; every key is in configs/base.py.$'),
        ('optimizer', None, r'^optimizer is None; expected a section of keys, as in configs/base.py.$'),
        ('seed', None, r'^seed is None; expected 0 to 2147483647, a whole number.$'),
        ('seed', 1.5, r'^seed is 1.5; expected 0 to 2147483647, a whole number.$'),
        ('seed', True, r'^seed is True; expected'),
        ('optimizer.peak_lr', '1e-3', r"^optimizer.peak_lr is '1e-3'; expected 0.0 to 10.0.$"),
        ('augment.frozen', 1, r'^augment.frozen is 1; expected True or False.$'),
        ('augment.policy', ('affine',), r"^augment.policy is \('affine',\); expected one of affine, distort, none, "),
        ('recipe', None, r'^recipe is None; expected a text.$'),
        ('engine.lanes', 4, r"^engine.lanes is 4; expected 'auto' or a whole number from 1 to 99999, as text.$"),
        ('phases', 'balanced', r"^phases is 'balanced'; expected some of phantom, balanced, imbalanced, autoencoder, "),
        ('phases', ([1],), r'^phases is \(\[1\],\); expected some of phantom'),
        ('model.filters', (32, 6.5), r'^model.filters is \(32, 6.5\); expected a tuple, each of it 1 to 65536'),
        ('model.filters', np.array([4, 6]), r'^model.filters is array\(\[4, 6\]\); expected a tuple'),
        ('trials', None, r'^trials is None; expected a tuple of dicts.$'),
    ],
)
def test_a_name_or_a_type_that_no_key_has_is_refused_in_one_line(name, value, message):
    with pytest.raises(UserError, match=message) as refusal:
        trial.check(with_value(name, value))
    assert '\n' not in str(refusal.value)


def test_a_key_that_is_missing_is_named():
    config = base.get_config()
    del config.optimizer.ema
    with pytest.raises(UserError, match=r'^optimizer.ema is missing; start from get_config'):
        trial.check(config)
