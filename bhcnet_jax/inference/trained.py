"""From a run directory to a model: which trials are meant, their recipe, their weights."""

import functools
import json
import pathlib
import shlex
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import logging
from ml_collections import ConfigDict

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.folder import table
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import calibration
from bhcnet_jax.inference.model import PHANTOM_TRAINED, Member, Model
from bhcnet_jax.plan import phases, trial, written
from bhcnet_jax.records import merge, run_files
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.run import checkpoints, places

SHOWN = 5  # recipes that a message names
ADVICE = 'Restore it from a copy.'
DRAWN_CLASSES = ('normal', 'hemorrhage')


def select(path: pathlib.Path, trials: str = '') -> Merged:
    """The finished trials of a run directory and its shards that `trials` names, all of one recipe and data set.

    trials: words that must all fit a trial, '' for none. A word is seed=NUMBER, fold=NUMBER, the recipe's label, or the
    beginning of the recipe's or the trial's id. UserError: no trial fits, they have several recipes, or some are
    unfinished.
    """
    merged = merge.merge([path])
    for line in merged.warnings:
        logging.warning('%s', line)
    rows = merged.trials[merged.trials.phases.notna()]  # baselines have no phases
    if rows.empty:
        raise UserError(f'{path}: no trained networks in it; expected the run directory of a training or sweep.')
    rows = _choose(path, rows, trials, ['recipe_id', 'data_fingerprint'])
    left = rows[rows.status.isin(('RUNNING', 'PENDING'))]
    if len(left):
        raise UserError(
            f'{path}: {len(left)} of {len(rows)} trials are unfinished. Start the training again to finish them, or '
            f'choose others, as in trials={"fold=0"!r}.'
        )
    done = rows[rows.status == 'DONE']
    if done.empty:
        ends = ', '.join(f'{count} {status}' for status, count in rows.status.value_counts().items())
        raise UserError(f'{path}: no trial has ended well ({ends}); there is nothing to use.')
    return merged._replace(trials=done, predictions=merged.predictions[merged.predictions.trial.isin(done.index)])


def _choose(path: pathlib.Path, rows: pd.DataFrame, trials: str, alike: list[str]) -> pd.DataFrame:
    """The rows that `trials` names. UserError: none, or several that differ in the columns `alike`."""
    fitting = rows
    for word in _words(trials):
        fitting = fitting[_fits(fitting, word)]
    if fitting.empty:
        raise UserError(f'{path}: trials={trials!r} fits none of its trials; it has {_listed(rows, alike)}.')
    if len(fitting.drop_duplicates(alike)) > 1:
        raise UserError(
            f'{path} has several recipes or data sets: {_listed(fitting, alike)}. Choose one, as in '
            f'trials={_first(fitting)!r}.'
        )
    return fitting


def _words(trials: str) -> list[str]:
    try:
        return shlex.split(trials)
    except ValueError as error:
        raise UserError(f'trials={trials!r}: {error}.') from error


def _fits(rows: pd.DataFrame, word: str) -> pd.Series:
    name, equals, value = word.partition('=')
    if equals and (name not in {'seed', 'fold'} & {*rows} or not value.isdecimal()):
        raise UserError(f'trials={word!r}: expected seed=NUMBER, fold=NUMBER, a recipe or the beginning of an id.')
    if equals:
        return rows[name] == int(value)
    return (rows.recipe == word) | rows.recipe_id.str.startswith(word) | rows.trial_id.str.startswith(word)


def _first(rows: pd.DataFrame) -> str:
    """Words that choose the first row's recipe; a label of several words is quoted."""
    return shlex.join([rows.recipe.iloc[0], rows.recipe_id.iloc[0][:8]])


def _listed(rows: pd.DataFrame, alike: list[str]) -> str:
    recipes = rows.drop_duplicates(alike)
    named = [f'{each.recipe} {each.recipe_id[:8]} ({each.phases})' for each in recipes.head(SHOWN).itertuples()]
    return ', '.join(named) + (f' and {len(recipes) - SHOWN} more' if len(recipes) > SHOWN else '')


def read(path: pathlib.Path, chosen: Merged) -> Model:
    """The model of the trials that `select` chose in a run directory, calibrated if they allow it, without outliers.

    UserError: weights or a record are missing.
    """
    rows = chosen.trials
    first = rows.iloc[0]
    directories = [pathlib.Path(file).parent for file in rows.file]
    config, data = _config(directories[0], first.recipe_id), run_files.data(directories[0], ADVICE)
    resolution = data.get('resolution', 0) if config['dataset']['equalise'] else 0
    if config['dataset']['equalise'] and not resolution:
        raise UserError(
            f'{directories[0]}/data.json does not say to how many pixels dataset.equalise reduced the images. '
            'Start the training again with the same command: it trains nothing and adds the number.'
        )
    hashes = data.get('pixel_sha256')
    return Model(
        name=str(first.recipe),
        recipe=trial.resolve(config),
        members=tuple(Member(each.trial_id, int(each.seed), int(each.fold)) for each in rows.itertuples()),
        variables=_weights(path, rows, directories),
        dataset=str(first.dataset),
        class_names=tuple(data.get('images', table.NUMBERED)),
        fingerprint=str(first.data_fingerprint),
        resolution=resolution,
        training_images=None if hashes is None else frozenset(hashes.values()),
        calibration=calibration.fit(calibration.out_of_fold(chosen)),
    )


def read_pretrained(path: pathlib.Path, trials: str = '') -> Model:
    """The networks that have seen drawn heads alone, from which the trials of a run directory went on; one a seed.

    trials: as of `select`, without folds, which share them. UserError: there are none, several recipes, some are
    unfinished, or their weights were not kept.
    """
    rows = merge.pretrainings(path)
    if rows.empty:
        raise UserError(f'{path}: no phase phantom in it; expected a run of --config=pretrained.')
    rows = _choose(path, rows, trials, ['recipe_id'])
    left = rows[rows.status != 'PRETRAINED']
    if len(left):
        raise UserError(
            f'{path}: the phase phantom of {len(left)} of {len(rows)} seeds has not ended ({left.status.iloc[0]}). '
            f'Start the training again to finish it, or choose others, as in trials={"seed=0"!r}.'
        )
    first = rows.iloc[0]
    config = written.complete(json.loads(first.settings))
    identity = trial.pretraining(config)
    if identity.recipe_id != first.recipe_id:
        raise UserError(f'{first.file}: the settings of {first.trial_id[:12]} do not lead to its recipe. {ADVICE}')
    same = trial.pretraining({**config, 'seed': int(first.seed)}).trial_id == first.trial_id
    return Model(
        name=str(first.recipe),
        recipe=trial.resolve(config),
        members=tuple(Member(each.trial_id, int(each.seed), 0) for each in rows.itertuples()),
        variables=_weights(path, rows, [pathlib.Path(file).parent for file in rows.file]),
        dataset=PHANTOM_TRAINED,
        class_names=DRAWN_CLASSES,
        fingerprint=phases.drawing_version() if same else 'drawn by another version',
        resolution=0,
        training_images=frozenset(),
    )


def images(chosen: Merged) -> ImageSet:
    """The image set that the trials which `select` chose were trained on. UserError: it is not there, or another."""
    first = chosen.trials.iloc[0]
    config = _config(pathlib.Path(first.file).parent, first.recipe_id)
    name = {'PHANTOM': 'phantom', 'head_ct': 'head_ct'}.get(first.dataset, config['dataset']['name'])
    found = input_pipeline.load(ConfigDict({**config['dataset'], 'name': name}))
    if found.fingerprint != first.data_fingerprint:
        raise UserError(f'the images that config.dataset names now are not those of the training ({found.label}).')
    return found


def _config(directory: pathlib.Path, recipe_id: str) -> dict[str, Any]:
    """The config of a recipe, as the run directory was asked for it."""
    asked, starts = run_files.config(directory, ADVICE), run_files.starts(directory, ADVICE)
    if not asked:
        raise UserError(f'{directory}: no config.json in it. {ADVICE}')
    config = next((config for found, config in written.recipes(asked['config'], starts) if found == recipe_id), None)
    if config is None:
        raise UserError(
            f'{directory}: config.json and env.json do not lead to recipe {recipe_id[:8]}. Restore them from a copy, '
            'or start the training again with the same command: it trains nothing and adds its sweep.'
        )
    return config


def _weights(path: pathlib.Path, rows: pd.DataFrame, directories: list[pathlib.Path]) -> Any:
    """The averages of the trials' weights, as they were evaluated; each array with a leading axis [M]."""
    recorded = {(each.trial_id, each.phase): int(each.epochs) for each in rows.itertuples()}  # of trials that are DONE
    found = {directory: places.find(directory, recorded) for directory in set(directories)}
    where = [found[directory].get(each) for directory, each in zip(directories, rows.trial_id, strict=True)]
    ends = zip(where, rows.phase, rows.epochs, strict=True)
    missing = sum(place is None or (place.phase_name, place.epoch) != (phase, epochs) for place, phase, epochs in ends)
    if missing:
        raise UserError(
            f'{path}: the weights of {missing} of {len(rows)} trials were not kept. Train them again with '
            '--config.engine.keep_weights=final --rerun=all.'
        )
    read_once = functools.cache(_checkpoint)  # for this model only: the files may be others the next time
    lanes = [_average(read_once(each.directory, each.phase_name, each.epoch), each.lane) for each in where]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)


def _checkpoint(directory: pathlib.Path, phase_name: str, epochs_done: int) -> Any:
    return checkpoints.read(directory / phase_name, epochs_done, places.trials_of(directory))


def _average(checkpoint: Any, lane: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[lane], checkpoint['state']['average'])
