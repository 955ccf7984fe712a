"""Baselines: what a network has to beat, trained and scored on exactly the networks' splits.

    python -m bhcnet_jax.baselines --config=balanced --config.split.scheme=kfold --sweep='split.fold=0:10'

Shortcuts ask how far one gets without looking at the head: image size, file size and grey levels, in a random forest.
A network that does not beat them has learnt nothing. The other baselines are the usual classifiers of scikit-learn on
pixels. All are fitted on the training part of a split as it is, without augmentation; the validation part, if there is
one, stays unused. Of a config they read dataset (but for its size), seed (their random_state) and split.

    python -m bhcnet_jax.baselines --config=balanced --config.split.scheme=kfold --sweep='split.fold=0:10' \\
        --features=runs/alexnet

fits a linear support vector machine in their place, to what the head of a trained network sees of the images: for each
seed and split the network with this seed that was trained on this split.

Their trials go into a results database like those of networks: `python -m bhcnet_jax.results` shows both in one table.
"""

import collections
import contextlib
import pathlib
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import sklearn
from absl import app, flags, logging
from ml_collections import ConfigDict

from bhcnet_jax import command_line, machine, results
from bhcnet_jax.errors import UserError, fail
from bhcnet_jax.inference.features import Networks
from bhcnet_jax.plan import sweep, trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.study import Study
from bhcnet_jax.records.database import Results, score_columns
from bhcnet_jax.run import run_dir
from bhcnet_jax.training.classifiers import BASELINES, METHODS, PIXELS, SIDE, Baseline, features_of, inputs, predict

flags.adopt_module_key_flags(command_line)  # so that --help lists them


FEATURES = flags.DEFINE_string(
    'features', '', 'Run directory of networks; a linear SVM on their features takes the place of the baselines.'
)
TRIALS = flags.DEFINE_string('trials', '', "Which networks of --features, if there are several recipes: a recipe's id.")
ON_FEATURES = 'linear SVM'  # a key of METHODS


class Trial(NamedTuple):
    """A baseline on one split with one seed; ids as of `trial.Identity`. network: the trial whose features it sees."""

    trial_id: str
    recipe_id: str
    baseline: Baseline
    config: ConfigDict
    split: Split
    network: str = ''


Values = Callable[[Trial], np.ndarray]  # float32 [N, F]


def trials(study: Study, networks: Networks | None = None) -> list[Trial]:
    """Every baseline at every point of the study's sweep, or the one on features of networks.

    UserError: the sweep has a key that only networks use, or a network is missing.
    """
    for key in study.swept:
        if key != 'seed' and not key.startswith('split.'):
            raise UserError(f'Sweep: no baseline uses {key}; sweep seed and keys of split, as in split.fold=0:10.')
    configs = [study.config_of(each) for each in study.trials(sweep.parse_shard('1/1'))]
    if networks:
        return [_identify_on_features(networks, config, study) for config in configs]
    return [_identify(baseline, config, study) for baseline in BASELINES for config in configs]


def _identify_on_features(networks: Networks, config: ConfigDict, study: Study) -> Trial:
    this = _identify(Baseline(ON_FEATURES, features_of(networks.name)), config, study)
    network = networks.trial_id(study.columns_of(config))
    trial_id = trial.digest({'of': this.trial_id, 'network': network})
    recipe_id = trial.digest({'of': this.recipe_id, 'network': networks.recipe_id})
    return this._replace(trial_id=trial_id, recipe_id=recipe_id, network=network)


def _identify(baseline: Baseline, config: ConfigDict, study: Study) -> Trial:
    split, method = study.split_of(config), METHODS[baseline.method]
    recipe = {
        'inputs': baseline.inputs,
        'method': method._asdict() | {'classifier': method.classifier.__name__},
        'split': trial.resolve(config)['split'],
    }
    if _sees_equalised(baseline, config):
        recipe['equalise'] = True
    rest = {'seed': config.seed, 'data': study.image_set.fingerprint, 'split': split.digest}
    return Trial(trial.digest(recipe | rest), trial.digest(recipe), baseline, config, split)


def _sees_equalised(baseline: Baseline, config: ConfigDict) -> bool:
    """What is known of the published files stays the same."""
    return config.dataset.equalise and baseline.inputs == PIXELS


def run(
    config: ConfigDict, axes: str = '', workdir: str = '', command: str = '', networks: Networks | None = None
) -> bool:
    """Trains the baselines that a run directory lacks, and prints its leaderboard. Returns whether all are DONE.

    config: see `configs/base.py`. axes: see `sweep.parse`; '': config.sweep. workdir: '': runs/baselines-<data set>.
    command: what the user typed, for env.json. networks: for a baseline on what their heads see.
    A trial that FAILED is trained again. UserError: each with one line for the user.
    """
    machine.set_up_jax()
    config = config.copy_and_resolve_references()
    if config.dataset.slices > 1:
        raise UserError(f'dataset.slices is {config.dataset.slices}, but baselines see single images; expected 1.')
    config.dataset.image_size = SIDE  # whatever size the networks train at
    study = Study(config, axes)
    wanted = trials(study, networks)
    label = study.image_set.label
    path = pathlib.Path(workdir or f'runs/baselines-{label}')
    used = ConfigDict({'recipe': 'baselines', **{key: config[key] for key in ('seed', 'dataset', 'split')}})
    recipe = {'recipe': used.recipe, 'split': trial.resolve(config)['split']}
    with (
        run_dir.claim(path, used, study.image_set, study.swept, recipe),
        contextlib.closing(Results(path / 'results.sqlite')) as database,
    ):
        run_dir.record_start(path, command)
        run_dir.record_data(path, study.image_set, study.grouping, None)
        damaged = {each.trial_id for each in wanted}.intersection(database.damaged())
        database.forget(damaged)
        statuses = database.statuses()
        missing = [each for each in wanted if statuses.get(each.trial_id) != 'DONE']
        print(f'Data: {label}, {len(study.image_set.ids)} images. {len(missing)} of {len(wanted)} trials to train.')
        if missing:
            _train(missing, study, database, _values(study, networks))
        database.export(path)
        statuses = database.statuses()
    results.main([str(path)])
    return all(statuses[each.trial_id] == 'DONE' for each in wanted)


def _values(study: Study, networks: Networks | None) -> Values:
    """What gives a trial's inputs."""
    if networks:
        one_at_a_time = threading.Lock()  # the images are read once, and JAX has all cores

        def features(this: Trial) -> np.ndarray:
            with one_at_a_time:
                return networks.features(this.network)

        return features
    found = inputs(study.image_set)
    return lambda this: found[this.baseline.inputs]


def _train(missing: Sequence[Trial], study: Study, database: Results, values_of: Values) -> None:
    """Trains trials, those of one baseline together, and prints a line for each baseline."""
    by_baseline = collections.defaultdict(list)
    for each in missing:
        by_baseline[each.baseline].append(each)
    for baseline, group in by_baseline.items():
        start = time.perf_counter()
        errors = _train_group(group, values_of, study, database)
        failed = [error for error in errors if error]
        line = f'{baseline.name}: {len(group)} trials, {time.perf_counter() - start:.1f} s'
        print(line + (f'; {len(failed)} FAILED, the first with {failed[0]}' if failed else ''), flush=True)


def _train_group(group: Sequence[Trial], values_of: Values, study: Study, database: Results) -> list[str]:
    """Trains trials of one baseline, one on each core. Returns their errors in one line each, '' for none.

    scikit-learn computes without the lock of Python, so threads will do, and no trial sees the others.
    """
    with ThreadPoolExecutor(machine.cores()) as pool:
        fitted = [pool.submit(_fit, each, values_of, study.image_set.labels) for each in group]
        try:
            return [_record(each, found, study, database) for each, found in zip(group, fitted, strict=True)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fit(this: Trial, values_of: Values, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities on the test part, and the seconds that they took."""
    values = values_of(this)
    start = time.perf_counter()
    probabilities = predict(METHODS[this.baseline.method], values, labels, this.split, this.config.seed)
    return probabilities, time.perf_counter() - start


def _record(this: Trial, fitted: Future[tuple[np.ndarray, float]], study: Study, database: Results) -> str:
    """Commits a trial's predictions and scores, or its traceback. Returns the error in one line, or ''."""
    labels = study.image_set.labels
    database.begin([{
        'trial_id': this.trial_id,
        'recipe': this.baseline.name + (' equalised' if _sees_equalised(this.baseline, this.config) else ''),
        'model': this.baseline.method,
        'recipe_id': this.recipe_id,
        'engine': f'scikit-learn {sklearn.__version__}',
        **study.columns_of(this.config),
    }])  # fmt: skip
    try:
        probabilities, seconds = fitted.result()
        scores = score_columns(labels[this.split.test], probabilities)
    except Exception as error:
        database.fail(this.trial_id, ''.join(traceback.format_exception(error)))
        return ' '.join(traceback.format_exception_only(error)[-1].split())
    database.record_epoch([], [
        {
            'trial_id': this.trial_id,
            'image_id': study.image_set.ids[image],
            'label': int(labels[image]),
            'probability': float(probability),
            'dataset': study.image_set.label,
        }
        for image, probability in zip(this.split.test, probabilities, strict=True)
    ])  # fmt: skip
    database.finish(this.trial_id, {**scores, 'train_seconds': seconds})
    return ''


def main(argv: list[str]) -> None:
    """Trains the baselines on the splits of the config in --config. argv: what is left beside the flags."""
    del argv
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    jax.config.update('jax_platforms', 'cpu')  # nothing here needs the memory of a GPU
    command = shlex.join(['python', '-m', 'bhcnet_jax.baselines', *sys.argv[1:]])
    try:
        networks = Networks(pathlib.Path(FEATURES.value), TRIALS.value) if FEATURES.value else None
        well = run(command_line.CONFIG.value, command_line.SWEEP.value, command_line.WORKDIR.value, command, networks)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print(f'\nInterrupted; finished trials are saved. To go on: {command}', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if well else 1)


if __name__ == '__main__':
    app.run(main, flags_parser=command_line.parse)
