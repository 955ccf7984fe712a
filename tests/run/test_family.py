"""A family of models is one file, a line in the registry and a config: here one that the package does not have."""

import contextlib
import sqlite3

import pandas as pd
import pytest
from flax import linen as nn

from bhcnet_jax import models
from bhcnet_jax.errors import UserError
from bhcnet_jax.keys import Key, Part, between
from bhcnet_jax.models.family import Family
from bhcnet_jax.plan import trial
from bhcnet_jax.run import train
from bhcnet_jax.run.train import Options
from lanes import small_config


class Logistic(nn.Module):
    """A logistic regression on the pixels, which are seen brighter in training if a traced key says so."""

    @nn.compact
    def __call__(self, x, values=None, dropout_keys=None, mask=None):
        if values is not None:
            x = values['model.brightness'] * x
        return nn.Dense(1, name='logit')(x.reshape(len(x), -1))[:, 0]


LOGISTIC = Family(lambda config: Logistic(), keys=(Key('model.brightness', between(0.0, 2.0), Part.TRACED),))


@pytest.fixture
def config(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setitem(models.FAMILIES, 'logistic', LOGISTIC)
    config = small_config(dataset__name='folder', dataset__dir=str(labelled_folder), imbalanced__positives=30)
    config.balanced.epochs, config.imbalanced.epochs, config.augment.policy = 3, 2, 'none'
    config.model.name, config.model.brightness = 'logistic', 1.0
    return config


def rows(path, table):
    with contextlib.closing(sqlite3.connect(path / 'results.sqlite')) as database:
        return pd.read_sql_query(f'SELECT * FROM {table}', database)


def test_a_new_family_trains_from_its_config_to_its_figures(config, tmp_path, capsys):
    path = tmp_path / 'run'
    assert train.run(config, Options(workdir=str(path)))
    assert rows(path, 'trials')[['model', 'status']].to_numpy().tolist() == [['logistic', 'DONE']]
    losses = rows(path, 'epochs').train_loss
    assert losses.iloc[-1] < losses.iloc[0]
    assert 'logit' in capsys.readouterr().out  # the table of layers
    drawn = {file.stem for file in (path / 'figures').iterdir()}
    assert 'predictions' in drawn and 'features' not in drawn  # it has no convolution


def test_a_new_traced_key_is_swept_reaches_the_model_and_compiles_nothing(config, tmp_path, capsys):
    path = tmp_path / 'run'
    assert train.run(config, Options(workdir=str(path), sweep='model.brightness=0.5,2'))
    assert capsys.readouterr().out.count('Compiled in') == 1
    first = rows(path, 'epochs').query('phase == "balanced" and epoch == 1')
    assert first.train_loss.nunique() == 2


def test_a_new_familys_keys_make_its_recipes_and_are_checked(config):
    assert trial.resolve(config)['model'] == {'name': 'logistic', 'brightness': 1.0}
    config.model.brightness = 3.0
    with pytest.raises(UserError, match=r'^model.brightness is 3.0; expected 0.0 to 2.0.$'):
        trial.check(config)
    config.model.name, config.model.brightness = 'cnn', 1.0
    assert 'brightness' not in trial.resolve(config)['model']
