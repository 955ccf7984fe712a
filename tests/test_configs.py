import pathlib
import pkgutil

import pytest

from bhcnet_jax import configs
from bhcnet_jax.configs import base
from bhcnet_jax.plan import trial

NAMES = [module.name for module in pkgutil.iter_modules(configs.__path__)]


def load(name):
    return pkgutil.resolve_name(f'bhcnet_jax.configs.{name}').get_config()


def leaves(tree, prefix=''):
    for key, value in tree.items():
        path = f'{prefix}.{key}' if prefix else key
        yield from leaves(value, path) if isinstance(value, dict) else [(path, value)]


def test_the_papers_recipes_are_there():
    kinds = ('balanced', 'imbalanced')
    expected = {*kinds, *(f'{cell}_{kind}' for cell in ('lstm', 'gru') for kind in kinds), 'base', 'smoke'}
    assert expected <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_every_config_can_be_run_and_only_overrides_keys_of_base(name):
    config = load(name)
    trial.check(config)
    assert [path for path, _ in leaves(config.to_dict())] == [path for path, _ in leaves(base.get_config().to_dict())]
    assert config.recipe == name


@pytest.mark.parametrize('name', NAMES)
def test_a_variant_is_short(name):
    source = pathlib.Path(configs.__path__[0], f'{name}.py').read_text()
    body = source.partition('def get_config')[2]
    assert name == 'base' or len(body.splitlines()) <= 20


@pytest.mark.parametrize(
    ('name', 'model', 'phases'),
    [
        ('balanced', 'cnn', ('balanced',)),
        ('imbalanced', 'cnn', ('balanced', 'imbalanced')),
        ('lstm_balanced', 'cnn_lstm', ('balanced',)),
        ('lstm_imbalanced', 'cnn_lstm', ('balanced', 'imbalanced')),
        ('gru_balanced', 'cnn_gru', ('balanced',)),
        ('gru_imbalanced', 'cnn_gru', ('balanced', 'imbalanced')),
    ],
)
def test_a_recipe_is_what_its_name_says(name, model, phases):
    config = load(name)
    assert (config.model.name, tuple(config.phases)) == (model, phases)
    assert (config.balanced.epochs, config.imbalanced.epochs, config.imbalanced.positives) == (24, 12, 153)
