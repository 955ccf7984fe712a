"""One call from a config to a finished run directory: data -> trial -> engine -> results, checkpoints, report."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit
from tensorboardX import SummaryWriter

from bhcnet_jax import checkpoint, input_pipeline, metrics, optim, phases, run_dir, splits, steps, trial
from bhcnet_jax.engine import Engine, EpochResult
from bhcnet_jax.input_pipeline import ImageSet
from bhcnet_jax.report import summary
from bhcnet_jax.report.progress import Progress
from bhcnet_jax.results import COUNTS, PROPORTIONS, SCORES, Results
from bhcnet_jax.trial import ConfigError, Trial


class Stopped(Exception):
    """Training ended early on request with everything saved; `signum` is the signal that asked for it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


class Diverged(ArithmeticError):
    """A loss or logit is not finite any more; one line that says when."""


def run(config: ConfigDict, workdir: str | None = None, command: str = '') -> None:
    """Trains what a config says, or goes on where an earlier call with the same config stopped.

    Args:
      config: see `configs/base.py`.
      workdir: the run directory; None: runs/<config.recipe>-<data set>.
      command: what the user typed, for env.json.

    Raises:
      ConfigError, DatasetError, RunDirError, ResultsError: each with one line for the user.
      Diverged: where the loss is not finite any more.
      Stopped: on SIGTERM or SIGINT, at the end of an epoch.
    """
    trial.check(config)
    image_set = input_pipeline.load(config.dataset)
    grouping = splits.find_groups(image_set)
    this = _make_trial(config, image_set, grouping)
    path = pathlib.Path(workdir or f'runs/{config.recipe}-{run_dir.dataset_label(image_set)}')
    with run_dir.claim(path, this, image_set), contextlib.closing(Results(path / 'results.sqlite')) as results:
        run_dir.record_start(path, command)
        run_dir.record_data(path, image_set, grouping, this)
        summary.describe(this, image_set)
        if results.status(this.trial_id) == 'DONE':
            print(f'This run is finished; its results are in {path}.')
        else:
            params = _Training([this], image_set, path, results).run()
            scores = _score(this, results)
            # Drawn before the trial is called done: a run killed in between draws again.
            summary.draw(this, image_set, jax.tree.map(lambda leaf: leaf[0], params), results, path / 'figures')
            results.finish(this.trial_id, scores)
        results.export(path)
        summary.print_result(this, image_set, results)
        print(f'Everything is in {path}')


def _make_trial(config: ConfigDict, image_set: ImageSet, grouping: splits.Grouping) -> Trial:
    part = config.split
    try:
        split = splits.split(image_set.labels, grouping.groups, part.scheme, part.folds, part.fold, part.seed)
        return trial.make(config, image_set.labels, split, image_set.fingerprint)
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Training:
    """Trials of one signature on their way through the phases, and where their results go.

    Trees have a leading axis [lanes], one lane for each trial.
    """

    def __init__(self, trials: Sequence[Trial], image_set: ImageSet, path: pathlib.Path, results: Results):
        self._trials = trials
        self._config = trials[0].config
        self._image_set = image_set
        self._path = path
        self._results = results
        self._phases = trials[0].phases  # the same in all lanes, but for their sources
        self._dataset = run_dir.dataset_label(image_set)

    def run(self) -> Any:
        """Trains to the end. Returns the final weights, numpy [lanes, ...]. Raises Stopped on request."""
        try:
            self._engine = Engine(
                self._config, self._image_set.images, self._image_set.labels, len(self._trials)
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for each in self._trials:
            self._results.begin(_trial_row(each, self._image_set, self._engine))
        lanes = trial.stack(self._trials, self._phases[0].index)
        seconds = self._engine.compile(lanes)
        print(f'Compiled in {seconds:.1f} s for {run_dir.hardware()}', flush=True)
        tree = {'state': self._engine.init(lanes), 'class_weights': lanes.class_weights}
        total = sum(phase.epochs for phase in self._phases)
        progress = Progress(total, self._config.augment.samples * len(self._trials))
        with _stop_requests() as requests, progress, contextlib.ExitStack() as stack:
            self._requests, self._progress = requests, progress
            self._writers = [stack.enter_context(self._writer(each)) for each in self._trials]
            for phase in self._phases:
                tree = self._run_phase(phase, tree)
        return tree['state'].params

    def _writer(self, this: Trial) -> SummaryWriter:
        writer = SummaryWriter(str(self._path / 'tensorboard' / this.trial_id[:12]))
        writer.add_text('dataset', self._dataset)
        return writer

    def _run_phase(self, phase: phases.Phase, before: dict[str, Any]) -> dict[str, Any]:
        """Trains a phase, from its newest checkpoint where there is one. before: what the phase before ended with."""
        lanes = trial.stack(self._trials, phase.index)
        metadata = {'dataset': self._dataset, 'phase': phase.name, 'trials': [each.trial_id for each in self._trials]}
        directory = self._path / 'checkpoints' / phase.name
        with contextlib.closing(checkpoint.Checkpoints(directory, metadata)) as checkpoints:
            done, tree = checkpoints.restore(like=before) or (0, None)
            if tree is None and phase.index > 0:
                tree = phases.begin(self._config, phase.name, lanes.class_weights, before)
            tree = tree or before
            self._progress.done += done
            if done < phase.epochs:
                self._run_epochs(phase, lanes.replace(class_weights=tree['class_weights']), done, tree, checkpoints)
            # Read back even where it was just written: what the next phase gets is what is on disk.
            return checkpoints.restore(like=before)[1]

    def _run_epochs(
        self,
        phase: phases.Phase,
        lanes: steps.Lane,
        done: int,
        tree: dict[str, Any],
        checkpoints: checkpoint.Checkpoints,
    ) -> None:
        config, count = self._config, len(self._trials)
        rates = [
            optim.learning_rates(each.config.optimizer, phase.epochs, lanes.learning_rates.shape[1])
            for each in self._trials
        ]
        states = self._engine.to_devices(tree['state'])
        for epoch in range(done, phase.epochs):
            lanes = lanes.replace(
                epoch=np.full(count, epoch, np.int32), learning_rates=np.stack([rate[epoch] for rate in rates])
            )
            start = time.perf_counter()
            states, result = self._engine.epoch(states, lanes)
            seconds = time.perf_counter() - start
            self._record(phase, epoch + 1, result, seconds)
            stop = self._requests and epoch + 1 < phase.epochs
            if (epoch + 1) % config.engine.checkpoint_every == 0 or epoch + 1 == phase.epochs or stop:
                state = self._engine.to_host(states, count)
                checkpoints.save(epoch + 1, {'state': state, 'class_weights': lanes.class_weights})
            if self._requests:
                raise Stopped(self._requests[0], f'{phase.name} epoch {epoch + 1} of {phase.epochs}')

    def _record(self, phase: phases.Phase, epoch: int, result: EpochResult, seconds: float) -> None:
        """Commits an epoch of all lanes, then shows it. epoch: 1-based."""
        rows, predictions = [], []
        if not all(np.isfinite(part).all() for part in (result.sums.loss, result.logits)):
            raise Diverged(
                f'The loss or a logit is not finite after {phase.name} epoch {epoch}: training diverged. '
                'Lower optimizer.peak_lr; nothing of this epoch is kept.'
            )
        for lane, this in enumerate(self._trials):
            sums = [float(part[lane]) for part in result.sums]
            rows.append({
                'trial_id': this.trial_id,
                'dataset': self._dataset,
                'phase': phase.name,
                'epoch': epoch,
                'train_loss': sums[0] / sums[2],
                'train_accuracy': sums[1] / sums[2],
                'seconds': seconds / len(self._trials),
                'images': int(sums[2]),
                **self._test_scores(this, result.logits[lane]),
            })  # fmt: skip
            predictions += self._predictions(this, result.logits[lane])
        self._results.record_epoch(rows, predictions)
        self._show(phase, epoch, rows)

    def _test_scores(self, this: Trial, logits: np.ndarray) -> dict[str, float]:
        labels = self._image_set.labels[this.split.test]
        logits = logits.astype(np.float64)
        counts = metrics.counts(labels, expit(logits))
        return {
            'test_loss': float(np.mean(np.logaddexp(0, logits) - labels * logits)),
            'test_accuracy': (counts.tp + counts.tn) / len(labels),
            **counts._asdict(),
        }

    def _predictions(self, this: Trial, logits: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                'trial_id': this.trial_id,
                'image_id': self._image_set.ids[image],
                'label': int(self._image_set.labels[image]),
                'probability': float(expit(np.float64(logit))),
                'dataset': self._dataset,
            }
            for image, logit in zip(this.split.test, logits, strict=True)
        ]

    def _show(self, phase: phases.Phase, epoch: int, rows: list[dict[str, Any]]) -> None:
        epochs_before = sum(earlier.epochs for earlier in self._phases[: phase.index])
        for writer, row in zip(self._writers, rows, strict=True):
            for name in ('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy'):
                writer.add_scalar(name, row[name], epochs_before + epoch)
            writer.flush()
        loss, accuracy = (float(np.mean([row[name] for row in rows])) for name in ('train_loss', 'train_accuracy'))
        images_per_second = sum(row['images'] for row in rows) / sum(row['seconds'] for row in rows)
        self._progress.update(phase.name, epoch, loss, accuracy, images_per_second)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one of the same kind has its usual effect.

    A signal that the parent had ignored (a background job of a script) stays ignored.
    """
    requests = []

    def request(signum: int, frame: Any) -> None:
        requests.append(signum)
        signal.signal(signum, usual[signum])
        name = signal.Signals(signum).name
        print(f'\n{name}: finishing this epoch, then saving. Once more to stop at once.', flush=True)

    heeded = [signum for signum in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(signum) != signal.SIG_IGN]
    usual = {signum: signal.signal(signum, request) for signum in heeded}
    try:
        yield requests
    finally:
        for signum, handler in usual.items():
            signal.signal(signum, handler)


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
