"""One call from a config to a finished run directory: data -> trials -> batches -> results and report."""

import contextlib
import os
import pathlib
import socket
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from bhcnet_jax import batch, input_pipeline, metrics, run_dir, splits, sweep, trial
from bhcnet_jax.batch import Batch
from bhcnet_jax.engine import Engine
from bhcnet_jax.input_pipeline import ImageSet
from bhcnet_jax.report import summary
from bhcnet_jax.report.progress import Progress
from bhcnet_jax.results import COUNTS, PROPORTIONS, SCORES, Results, ResultsError
from bhcnet_jax.trial import ConfigError, Trial

ENDED = ('DONE', 'FAILED', 'DIVERGED')


class Options(NamedTuple):
    """How to run what a config says; none of it changes a result.

    workdir: the run directory; '': runs/<config.recipe>-<data set>. command: what the user typed, for env.json.
    sweep: axes, see `sweep.parse`; '': config.sweep. shard: 'i/n', the share of the trials to train; '': all.
    rerun: train again what has 'failed' or 'diverged', 'all', or trials whose id begins so; '': only what is missing.
    dry_run: print what would be trained and stop. fail_fast: stop at the first trial that fails or diverges.
    """

    workdir: str = ''
    command: str = ''
    sweep: str = ''
    shard: str = ''
    rerun: str = ''
    dry_run: bool = False
    fail_fast: bool = False


class Data:
    """The image set of a config at the sizes that its trials ask for, its groups, and its splits, each made once."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self._by_size = {}
        self._splits = {}
        self.image_set = self.at(config.dataset.image_size)
        self.grouping = splits.find_groups(self.image_set)

    def at(self, image_size: int) -> ImageSet:
        """The images at another size."""
        if image_size not in self._by_size:
            dataset = ConfigDict({**self._config.dataset.to_dict(), 'image_size': image_size})
            self._by_size[image_size] = input_pipeline.load(dataset)
        return self._by_size[image_size]

    def trial(self, config: ConfigDict) -> Trial:
        """The trial of one config. ConfigError if it cannot be made of these images."""
        part = config.split
        key = (part.scheme, part.folds, part.fold, part.seed)
        labels = self.image_set.labels
        try:
            if key not in self._splits:
                self._splits[key] = splits.split(labels, self.grouping.groups, *key)
            return trial.make(config, labels, self._splits[key], self.image_set.fingerprint)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def run(config: ConfigDict, options: Options) -> bool:
    """Trains what a config says, or what of it is missing where earlier calls have been at work.

    A config without a sweep is one trial. config: see `configs/base.py`. Returns whether all trials ended well.

    Raises:
      ConfigError, DatasetError, RunDirError, ResultsError: each with one line for the user.
      batch.Stopped: on SIGTERM or SIGINT, at the end of an epoch.
    """
    trial.check(config)
    axes = sweep.parse(options.sweep or config.sweep, config)
    shard = sweep.parse_shard(options.shard or '1/1')
    data = Data(config)
    trials = [data.trial(each) for each in _configs(config, axes)]
    _refuse_equal(trials)
    wanted = [each for each in trials if shard.takes(each.trial_id)]
    swept = [key for axis in axes for key in axis.keys]
    path = _path(config, data.image_set, options)
    if options.dry_run and not path.exists():
        summary.describe(wanted, wanted, data.image_set)
        return True
    with (
        run_dir.claim(path, config, data.image_set, swept),
        contextlib.closing(Results(path / 'results.sqlite')) as results,
    ):
        statuses = results.statuses()
        again = _to_rerun(wanted, options.rerun, statuses)
        missing = [each for each in wanted if each.trial_id in again or statuses.get(each.trial_id) not in ENDED]
        summary.describe(wanted, missing, data.image_set)
        if options.dry_run:
            return True
        _forget(again, results, path)
        run_dir.record_start(path, options.command)
        run_dir.record_data(path, data.image_set, data.grouping, wanted[0] if len(wanted) == 1 else None)
        _train(wanted, missing, data, path, results, options.fail_fast)
        results.export(path)
        summary.print_end(wanted, data.image_set, results, path)
        statuses = results.statuses()
    return all(statuses.get(each.trial_id) == 'DONE' for each in wanted)


def _configs(config: ConfigDict, axes: Sequence[sweep.Axis]) -> Iterator[ConfigDict]:
    """The config of every trial of a sweep, checked."""
    for point in sweep.points(axes):
        each = config.copy_and_resolve_references()
        each.update_from_flattened_dict(point)
        trial.check(each)
        yield each


def _refuse_equal(trials: Sequence[Trial]) -> None:
    different = len({each.trial_id for each in trials})
    if different < len(trials):
        raise ConfigError(
            f'The sweep has {len(trials)} points, but only {different} different trials: one of its axes is over a key '
            'that these recipes do not use, such as a strength of another augmentation policy. Leave it out.'
        )


def _path(config: ConfigDict, image_set: ImageSet, options: Options) -> pathlib.Path:
    """The run directory; every shard has one of its own inside it, so that no two processes write to one file."""
    path = pathlib.Path(options.workdir or f'runs/{config.recipe}-{run_dir.dataset_label(image_set)}')
    return path / f'shard-{options.shard.replace("/", "-of-")}' if options.shard else path


def _to_rerun(wanted: Sequence[Trial], rerun: str, statuses: dict[str, str]) -> list[str]:
    """Ids of the wanted trials that are to be trained again."""
    ids = [each.trial_id for each in wanted if each.trial_id in statuses]
    if rerun in ('', 'all'):
        return ids if rerun else []
    if rerun in ('failed', 'diverged'):
        return [trial_id for trial_id in ids if statuses[trial_id] == rerun.upper()]
    chosen = [trial_id for trial_id in ids if trial_id.startswith(rerun)]
    if not chosen:
        raise ConfigError(f'--rerun={rerun}: no trial here has an id that begins so; expected failed, diverged or all.')
    return chosen


def _forget(ids: Sequence[str], results: Results, path: pathlib.Path) -> None:
    """Deletes trials, and the checkpoints of their batches first, so that none goes on from what is forgotten."""
    for in_batch in batch.saved(path):
        if set(in_batch) & set(ids):
            batch.drop(path, in_batch)
    results.forget(ids)


def _batches(wanted: Sequence[Trial], missing: Sequence[Trial], lanes: int, path: pathlib.Path) -> list[list[Trial]]:
    """Trials that train together: first the batches that have checkpoints, then new ones of up to `lanes` trials."""
    known = {each.trial_id: each for each in wanted}
    left = {each.trial_id: each for each in missing}
    batches = []
    for ids in batch.saved(path):
        if set(ids) <= set(known) and set(ids) & set(left):  # a lane may have diverged; the others go on
            batches.append([known[trial_id] for trial_id in ids])
            left = {trial_id: each for trial_id, each in left.items() if trial_id not in ids}
    groups = {}
    for each in left.values():
        groups.setdefault(trial.batch_key(each), []).append(each)
    for group in groups.values():
        batches += [group[start : start + lanes] for start in range(0, len(group), lanes)]
    return batches


class _Engines:
    """An engine for every signature, made and compiled when it is first needed. count: trials to be trained."""

    def __init__(self, data: Data, first: Trial, count: int):
        self._data, self._count, self._made = data, count, {}
        self.lanes = self._make(first).capacity

    def _make(self, this: Trial) -> Engine:
        signature = trial.signature(this)
        if signature not in self._made:
            image_set = self._data.at(this.config.dataset.image_size)
            try:
                self._made[signature] = Engine(this.config, image_set.images, image_set.labels, self._count)
            except ValueError as error:
                raise ConfigError(str(error)) from error
        return self._made[signature]

    def of(self, trials: Sequence[Trial]) -> Engine:
        """The engine of a batch. ConfigError if it has fewer lanes than the batch, which another run had begun."""
        if len(trials) > self.lanes:
            raise ConfigError(
                f'{len(trials)} trials were begun together, but there is room for {self.lanes}; '
                f'raise engine.lanes or use as many devices as before.'
            )
        engine = self._make(trials[0])
        if not engine.is_compiled:
            seconds = engine.compile(trial.stack(trials, 0))
            print(f'Compiled in {seconds:.1f} s for {run_dir.hardware()}', flush=True)
        return engine


def _train(
    wanted: Sequence[Trial],
    missing: Sequence[Trial],
    data: Data,
    path: pathlib.Path,
    results: Results,
    fail_fast: bool,
) -> None:
    """Trains the missing trials batch by batch; one that fails does not keep the next from training."""
    if not missing:
        return
    engines = _Engines(data, missing[0], len(missing))
    batches = _batches(wanted, missing, engines.lanes, path)
    total = sum(phase.epochs for trials in batches for phase in trials[0].phases)
    engines.of(batches[0])  # compiled before signals are collected: they are heeded between epochs only
    # A line per epoch would be too much to read from thousands of trials.
    pace = {'seconds_between_lines': 60 if len(batches) > 1 else 0}
    with batch.stop_requests() as requests, Progress(total, missing[0].config.augment.samples, **pace) as progress:
        for trials in batches:
            this = Batch(trials, data.at(trials[0].config.dataset.image_size), engines.of(trials), path, results)
            _train_batch(this, trials, wanted, results, progress, requests)
            if fail_fast and any(results.status(each.trial_id) != 'DONE' for each in trials):
                return


def _train_batch(
    this: Batch,
    trials: Sequence[Trial],
    wanted: Sequence[Trial],
    results: Results,
    progress: Progress,
    requests: list[int],
) -> None:
    results.enter([_trial_row(each, this.image_set, this.engine) for each in trials])
    going = [each.trial_id for each in trials if results.status(each.trial_id) != 'DIVERGED']
    results.claim(going, socket.gethostname(), os.getpid())
    try:
        params = this.train(progress, requests, with_tensorboard=len(wanted) == 1)
        scores = {each.trial_id: _score(each, results) for each in this.alive()}
        if len(wanted) == 1 and scores:
            # Drawn before the trial is called done: a run killed in between draws again.
            weights = jax.tree.map(lambda leaf: leaf[0], params)
            summary.draw(trials[0], this.image_set, weights, results, this.path / 'figures')
        results.finish_many(scores)
    except (batch.Stopped, ConfigError, ResultsError, OSError):
        raise  # no fault of these trials
    except Exception:
        for trial_id in going:
            results.fail(trial_id, traceback.format_exc())
    if trials[0].config.engine.keep_weights == 'none':
        this.drop()


def _trial_row(this: Trial, image_set: ImageSet, engine: Engine) -> dict[str, Any]:
    """What is known of a trial before it is trained."""
    config = this.config
    return {
        'trial_id': this.trial_id,
        'recipe': config.recipe,
        'model': config.model.name,
        'dataset': run_dir.dataset_label(image_set),
        'seed': config.seed,
        'fold': config.split.fold,
        'phase': this.phases[-1].name,
        'epochs': this.phases[-1].epochs,
        'n_test': len(this.split.test),
        'phases': '+'.join(phase.name for phase in this.phases),
        'scheme': config.split.scheme,
        'folds': config.split.folds,
        'split_seed': config.split.seed,
        'recipe_id': this.recipe_id,
        'data_fingerprint': image_set.fingerprint,
        'split_digest': this.split.digest,
        'code': run_dir.code_version(),
        'hardware': run_dir.hardware(),
        'engine': f'devices {len(engine.devices)}, lanes {config.engine.lanes}, spread {config.engine.spread}',
    }


def _score(this: Trial, results: Results) -> dict[str, Any]:
    """A trained trial's scores, from its predictions and epochs in the database."""
    predictions, epochs = results.read('predictions', this.trial_id), results.read('epochs', this.trial_id)
    scores = metrics.evaluate(predictions.label.to_numpy(), predictions.probability.to_numpy())
    counts = metrics.Counts(*(int(scores[name]) for name in COUNTS))
    ends = metrics.intervals(counts)
    return {
        **counts._asdict(),
        **{name: float(scores[name]) for name in SCORES},
        **{f'{name}_low': float(ends[name][0]) for name in PROPORTIONS},
        **{f'{name}_high': float(ends[name][1]) for name in PROPORTIONS},
        'train_seconds': float(epochs.seconds.sum()),
        'images_per_second': float(epochs.images.sum() / epochs.seconds.sum()),
    }
