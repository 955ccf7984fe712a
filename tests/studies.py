"""A small study, written straight into results databases: networks of a sweep, baselines, groups of look-alikes.

And the report on it, read back.
"""

import contextlib
import json
import pathlib
import re

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from bhcnet_jax.configs import base
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.plan import trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.records.database import Results, score_columns
from bhcnet_jax.report import __main__ as command
from bhcnet_jax.training.classifiers import BASELINES

FOLDS, EPOCHS, VAL_IMAGES = 4, 3, 12
FINGERPRINTS = {'head_ct': bhcnet.FINGERPRINT}  # of other data sets: OTHER
OTHER = 'f' * 64
SWEEP = f'seed=0:2 split.fold=0:{FOLDS} model.dropout=0.5,0.25 optimizer.peak_lr=1e-3,1e-2'
CLASSES = ('normal', 'hemorrhage')
NO_SPLIT = Split(np.zeros(0, np.int32), np.zeros(0, np.int32), '')


def config() -> ConfigDict:
    """Of the networks, whose phases are the paper's in table 2, 12 epochs."""
    c = base.get_config()
    c.recipe, c.split.scheme, c.split.folds = 'imbalanced', 'kfold', FOLDS
    return c


def labels(images: int) -> np.ndarray:
    """bool [images]; images 2k and 2k + 1 look alike, and so have one label."""
    return np.arange(images) // 2 % 2 == 1


def write(
    directory: pathlib.Path,
    dataset: str = 'head_ct',
    skill: float = 3.5,
    images: int = 48,
    seeds: int = 2,
    classes: tuple[str, str] = CLASSES,
) -> list[pathlib.Path]:
    """Run directories of four networks, as a sweep would leave them, and of two baselines. skill: of the networks."""
    networks, baselines = directory / 'networks', directory / 'baselines'
    first = config()
    started = f"python -m bhcnet_jax.main --config=imbalanced --sweep='{SWEEP}'"
    _write_files(networks, dataset, images, first.to_dict(), started, classes)
    with contextlib.closing(Results(networks / 'results.sqlite')) as database:
        for place, (dropout, peak_lr) in enumerate([(0.5, 1e-3), (0.25, 1e-3), (0.5, 1e-2), (0.25, 1e-2)]):
            point = {'model.dropout': dropout, 'optimizer.peak_lr': peak_lr}
            recipe_id = trial.identify(trial.set_point(first.to_dict(), point), NO_SPLIT, '').recipe_id
            row = {'recipe': 'imbalanced', 'recipe_id': recipe_id, 'model': 'cnn', 'phases': 'balanced+imbalanced'}
            row |= {'phase': 'imbalanced', 'epochs': 12, 'engine': 'lanes 1'}
            _train(database, row, dataset, images, seeds, skill - 0.3 * place)
    of_baselines = {name: first.to_dict()[name] for name in ('seed', 'dataset', 'split')}
    _write_files(baselines, dataset, images, of_baselines, 'python -m bhcnet_jax.baselines --config=balanced', classes)
    with contextlib.closing(Results(baselines / 'results.sqlite')) as database:
        for each, of_baseline in ((BASELINES[3], 1.0), (BASELINES[4], 1.5)):
            row = {'recipe': each.name, 'recipe_id': each.name, 'model': each.method, 'engine': 'scikit-learn'}
            _train(database, row, dataset, images, seeds, of_baseline)
    return [networks, baselines]


def write_holdouts(directory: pathlib.Path, hits: dict[int, list[int]]) -> pathlib.Path:
    """A run directory of single trainings on 20 test images. hits: by epochs, of each split the images it has right."""
    first, holdouts = base.get_config(), directory / 'holdouts'
    first.recipe, first.phases = 'balanced', ('balanced',)
    splits = max(map(len, hits.values()))
    started = f"python -m bhcnet_jax.main --sweep='balanced.epochs={','.join(map(str, hits))} split.seed=0:{splits}'"
    _write_files(holdouts, 'head_ct', 48, first.to_dict(), started)
    with contextlib.closing(Results(holdouts / 'results.sqlite')) as database:
        for epochs, split_seed, right in ((key, *each) for key, of_key in hits.items() for each in enumerate(of_key)):
            point = {'balanced.epochs': epochs, 'split.seed': split_seed}
            recipe_id = trial.identify(trial.set_point(first.to_dict(), point), NO_SPLIT, '').recipe_id
            row = {'trial_id': recipe_id, 'recipe': 'balanced', 'recipe_id': recipe_id, 'model': 'cnn', 'seed': 0}
            row |= {'phase': 'balanced', 'phases': 'balanced', 'epochs': epochs, 'fold': 0, 'folds': 10}
            row |= {'scheme': 'holdout', 'split_seed': split_seed, 'dataset': 'head_ct', 'n_test': 20}
            row |= {'data_fingerprint': FINGERPRINTS['head_ct'], 'code': '0.1.0 abc', 'hardware': '1 x cpu'}
            database.begin([row])
            truth = labels(20)
            said = np.where(np.arange(20) < right, truth, ~truth)
            predictions = [
                {'trial_id': recipe_id, 'image_id': f'{image + split_seed:03}.png', 'label': int(truth[image]),
                 'probability': 0.25 + 0.5 * float(said[image]), 'dataset': 'head_ct'} for image in range(20)
            ]  # fmt: skip
            database.record_epoch([], predictions)
            database.finish(recipe_id, score_columns(truth, 0.25 + 0.5 * said))
    return holdouts


def _write_files(
    directory: pathlib.Path, dataset: str, images: int, written: dict, started: str, classes: tuple[str, str] = CLASSES
) -> None:
    directory.mkdir(parents=True)
    half = [int(count) for count in (np.sum(~labels(images)), labels(images).sum())]
    ids = [f'{image:03}.png' for image in range(images)]
    groups = [ids[start : start + 2] for start in range(0, images, 2)]
    pairs = [{'a': a, 'b': b, 'reason': 'near', 'similarity': 0.9} for a, b in groups]
    data = {'dataset': dataset, 'fingerprint': FINGERPRINTS.get(dataset, OTHER), 'groups': groups, 'pairs': pairs}
    data['images'] = dict(zip(classes, half, strict=True))
    start = {'command': started, 'code': '0.1.0 abc', 'python': '3.11.0', 'packages': {'jax': '0.5'}}
    of_config = {'config': written, 'identity': {}, 'swept': []}
    for name, tree in {'config': of_config, 'env': [start], 'data': data}.items():
        (directory / f'{name}.json').write_text(json.dumps(tree))


def _train(database: Results, row: dict, dataset: str, images: int, seeds: int, skill: float) -> None:
    """Trials of a recipe: probabilities that agree with the labels the more, the larger the skill."""
    truth = labels(images)
    hardness = 1.3 * np.random.default_rng(2).normal(size=images // 2).repeat(2)  # look-alikes are as hard
    for seed in range(seeds):
        noise = np.random.default_rng([seed, round(100 * skill), len(row['recipe'])]).normal(size=images)
        probabilities = 1 / (1 + np.exp(-skill * (truth - 0.5) - hardness - 0.4 * noise))
        for fold in range(FOLDS):
            test = np.flatnonzero(np.arange(images) // 4 % FOLDS == fold)
            trial_id = f'{row["recipe_id"][:30]}-{dataset}-{seed}-{fold}'
            of_trial = {'trial_id': trial_id, 'seed': seed, 'fold': fold, 'folds': FOLDS, 'scheme': 'kfold'}
            of_trial |= {'dataset': dataset, 'data_fingerprint': FINGERPRINTS.get(dataset, OTHER)}
            of_trial |= {'n_test': len(test), 'split_seed': 0}
            database.begin([row | of_trial | {'code': '0.1.0 abc', 'hardware': '1 x cpu'}])
            predictions = [
                {'trial_id': trial_id, 'image_id': f'{image:03}.png', 'label': int(truth[image]),
                 'probability': float(probabilities[image]), 'dataset': dataset} for image in test
            ]  # fmt: skip
            epochs = _epochs(trial_id, dataset, seed, fold) if 'phases' in row else []
            database.record_epoch(epochs, predictions)
            scores = score_columns(truth[test], probabilities[test])
            if 'phases' in row:  # the baselines have no validation part
                right = VAL_IMAGES - fold - seed - round(skill) % 2
                scores |= {'n_val': VAL_IMAGES, 'val_accuracy': right / VAL_IMAGES}
                scores['val_loss'] = noise[0] ** 2 + 0.1 * fold
            database.finish(trial_id, {**scores, 'train_seconds': 10.0})


def _epochs(trial_id: str, dataset: str, seed: int, fold: int) -> list[dict]:
    return [
        {'trial_id': trial_id, 'dataset': dataset, 'phase': phase, 'epoch': epoch, 'train_loss': 0.7 - 0.1 * epoch,
         'train_accuracy': 0.5 + 0.1 * epoch, 'test_loss': 0.7 - 0.05 * epoch + 0.01 * seed,
         'test_accuracy': 0.5 + 0.05 * epoch + 0.01 * fold}
        for phase in ('balanced', 'imbalanced') for epoch in range(1, EPOCHS + 1)
    ]  # fmt: skip


def predictions(directories: list[pathlib.Path]) -> pd.DataFrame:
    """What predictions.csv of each run directory says: recipe_id, seed, image_id, label, probability."""
    frames = []
    for directory in directories:
        with contextlib.closing(Results(directory / 'results.sqlite')) as database:
            database.export(directory)
        results = pd.read_csv(directory / 'results.csv')[['trial_id', 'recipe_id', 'seed', 'fold']]
        frames.append(pd.read_csv(directory / 'predictions.csv').merge(results, on='trial_id'))
    return pd.concat(frames)


def report(folder: pathlib.Path, *flags: str, **study) -> pathlib.Path:
    """Writes a study, and the report on it as folder/report.*; returns the folder. study: as of `write`."""
    make_report(folder, *write(folder, **study), *flags)
    return folder


def make_report(folder: pathlib.Path, *arguments: object) -> None:
    """folder/report.*, without images. arguments: of the command line."""
    command.main([*map(str, arguments), f'--out={folder}/report.html', '--no_images'])


def numbers(folder: pathlib.Path, table: str) -> pd.DataFrame:
    """The rows of one table in report.csv: row, column -> value, low, high, n."""
    found = pd.read_csv(folder / 'report.csv')
    return found[found.table == table].set_index(['row', 'column'])[['value', 'low', 'high', 'n']]


def text(folder: pathlib.Path, suffix: str = 'md') -> str:
    """What report.SUFFIX says."""
    return (folder / f'report.{suffix}').read_text()


def section(folder: pathlib.Path, title: str) -> str:
    """One of report.md, without its title."""
    found = [part.split('\n', 1) for part in re.split(r'\n## \d+\. ', text(folder))[1:]]
    return dict(found)[title]


def recipe_id_of(label: str, scored: pd.DataFrame) -> str:
    """Networks are told apart by their settings, baselines by their name. scored: as `predictions` has it."""
    names = set(scored.recipe_id)
    if label in names:
        return label
    dropout, peak_lr = (float(re.search(rf'{key} ([\d.]+)', label)[1]) for key in ('dropout', 'peak_lr'))
    point = {'model.dropout': dropout, 'optimizer.peak_lr': peak_lr}
    found = trial.identify(trial.set_point(config().to_dict(), point), NO_SPLIT, '').recipe_id
    assert found in names
    return found
