"""Trains a batch of lanes through its phases, with checkpoints and rows in the database."""

from __future__ import annotations

import contextlib
import functools
import importlib
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import scipy  # its parts when they are first used

from bhcnet_jax import machine
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.display.progress import Progress
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import phases
from bhcnet_jax.plan.trial import Trial
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import places
from bhcnet_jax.run.places import Place
from bhcnet_jax.statistics import metrics
from bhcnet_jax.training import optim
from bhcnet_jax.training.engine import Engine, EpochResult
from bhcnet_jax.training.lanes import stack
from bhcnet_jax.training.steps import Lane

if TYPE_CHECKING:  # orbax takes long to import
    from bhcnet_jax.run.checkpoints import Checkpoints

COMMIT_SECONDS = 1.0  # between transactions at least; many short epochs share one
# Imported while XLA compiles, since a start should not wait for them.
LATER = ('bhcnet_jax.run.checkpoints', 'scipy.special', 'pandas', 'sklearn.metrics', 'statsmodels.stats.proportion')
CURVES = tuple(f'{part}_{name}' for part in ('train', 'test', 'val') for name in ('loss', 'accuracy'))


class _AllDiverged(Exception):
    """Every lane of the batch has diverged."""


class Stopped(Exception):
    """Training ended early on request, with everything saved. `signum` is the signal that asked for it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM. The second signal of a kind has its usual effect.

    A signal that the parent process ignored stays ignored, as in a background job of a script.
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


class LaneBatch:
    """Trials that train together, one lane each, from their newest checkpoint to an epoch of their phases.

    Trees have a leading axis [lanes]. A lane whose loss is no longer finite is DIVERGED in the database and gets no
    more rows; the others go on.

    Args:
      trials: of equal batch_key and equal progress.
      image_set: what they train on.
      engine: for their signature, with room for all of them.
      path: the run directory.
      results: its database.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        image_set: ImageSet,
        engine: Engine,
        path: pathlib.Path,
        results: Results,
    ):
        self._trials = trials
        self._config = trials[0].config
        self._results = results
        self.image_set = image_set
        self.engine = engine
        self.path = path
        self._rows: list[dict[str, Any]] = []  # of epochs that are not yet in the database
        self._latest: list[dict[str, Any]] = []  # predictions of the last of them
        self._committed_at = time.monotonic()
        self._unsaved = 0  # epochs of lanes that are shown, but in no checkpoint yet
        self._phases = trials[0].phases  # the same in all lanes, but for their sources
        self._dataset = image_set.label
        self.alive = {each.trial_id for each in trials}  # ids of those that have not diverged

    def train(
        self,
        until: int,
        known: Mapping[str, Place],
        progress: Progress,
        requests: list[int],
        with_tensorboard: bool,
    ) -> Any:
        """Trains on from the newest checkpoint. Returns the weights, numpy [lanes, ...]; None if all lanes diverged.

        until: epochs of all phases together, after which to stop with a checkpoint. known: see `places.find`. requests:
        see `stop_requests`; raises Stopped at the end of an epoch if there is one.
        """
        ids, names = [each.trial_id for each in self._trials], [phase.name for phase in self._phases]
        lanes = stack(self._trials, 0)
        if self._epochs_done(known.get(ids[0])) < min(until, self._trials[0].identity.epochs):
            # Of the last phase: a first one on drawn heads, trained elsewhere, has other shapes.
            self._start_compiling(stack(self._trials, self._phases[-1].index))
        _import_the_rest(alone=with_tensorboard)
        tree = {'state': self.engine.init(lanes), 'class_weights': lanes.class_weights}
        self.directory = places.enter(self.path, ids, names, known, like=tree)
        self._progress, self._requests = progress, requests
        with contextlib.ExitStack() as opened:
            self._writers = {}
            if with_tensorboard:
                from bhcnet_jax.display.tensorboard import Events

                events = self.path / 'tensorboard'
                self._writers = {
                    trial_id: opened.enter_context(Events(events / trial_id[:12], self._dataset)) for trial_id in ids
                }
            opened.callback(self._hide_unsaved)
            with contextlib.suppress(_AllDiverged):
                tree = self._train(tree, until)
                if phases.is_pretraining(self._config) and lanes.scored.size:
                    self._score_pretrained(tree['state'].average, lanes.scored)
                return tree['state'].average['params']
        return None

    def _train(self, fresh: dict[str, Any], until: int) -> dict[str, Any]:
        """Returns the tree after training. fresh: what the first phase starts from; every checkpoint has its shapes."""
        current, done, tree = self._newest(like=fresh)
        for phase in self._phases[current:]:
            if phase.index > current:
                computed = stack(self._trials, phase.index).class_weights
                done, tree = 0, phases.begin(self._config, phase.name, computed, tree)
            left = until - sum(earlier.epochs for earlier in self._phases[: phase.index])
            if min(left, phase.epochs) > done:
                tree = self._run_epochs(phase, done, min(left, phase.epochs), tree)
            if left <= phase.epochs:
                break
        return tree

    def _score_pretrained(self, averages: Any, scored: np.ndarray) -> None:
        """Adds to the last epoch of trials on drawn heads alone how they do on their real images."""
        logits = self.engine.evaluate(averages, scored)
        rows, predictions = [], []
        for this, found in zip(self._trials, logits, strict=True):
            last = {'trial_id': this.trial_id, 'phase': phases.DRAWN, 'epoch': self._phases[-1].epochs}
            rows.append({**last, **self._scores(this, found[: len(this.split.test) + len(this.split.val)])})
            predictions += self._predictions(this, found[: len(this.split.test)])
        self._results.record_epoch(rows, predictions)

    def _newest(self, like: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
        """The newest readable checkpoint: number of its phase, epochs done in it, tree."""
        for phase in reversed(self._phases):
            if (self.directory / phase.name).exists():
                with self._checkpoints(phase) as saved:
                    found = saved.restore(like)
                if found:
                    return phase.index, *found
        return 0, 0, like

    def _checkpoints(self, phase: phases.Phase) -> contextlib.closing[Checkpoints]:
        from bhcnet_jax.run.checkpoints import Checkpoints

        metadata = {'dataset': self._dataset, 'phase': phase.name}
        ids = [each.trial_id for each in self._trials]
        return contextlib.closing(Checkpoints(self.directory / phase.name, ids, metadata))

    def _run_epochs(self, phase: phases.Phase, done: int, end: int, tree: dict[str, Any]) -> dict[str, Any]:
        """Trains the epochs from `done` to `end` of a phase. Returns the tree that is then on disk."""
        count = len(self._trials)
        lanes = stack(self._trials, phase.index).replace(class_weights=tree['class_weights'])
        steps = lanes.learning_rates.shape[1]
        rates = [
            np.concatenate([optim.learning_rates(each.config.optimizer, epochs, steps) for epochs in phase.parts])
            for each in self._trials
        ]
        self._compile(lanes)
        states = self.engine.to_devices(tree['state'])
        with self._checkpoints(phase) as saved:
            saved_at = time.monotonic()
            for epoch in range(done, end):
                lanes = lanes.replace(
                    epoch=np.full(count, epoch, np.int32),
                    layer=np.full(count, phase.layer_of(epoch), np.int32),
                    begins=np.full(count, phase.begins_layer(epoch)),
                    sources=np.stack([each.phases[phase.index].sources_of(epoch) for each in self._trials]),
                    learning_rates=np.stack([rate[epoch] for rate in rates]),
                )
                start = time.perf_counter()
                states, result = self.engine.epoch(states, lanes)
                self._record(phase, epoch + 1, result, time.perf_counter() - start)
                due = time.monotonic() - saved_at >= self._config.engine.checkpoint_seconds
                if due or epoch + 1 == end or self._requests:
                    self._commit()  # before the checkpoint, so that none is of epochs that the database lacks
                    state = jax.tree.map(np.array, self.engine.to_host(states, count))  # the next epoch uses theirs up
                    saved.start_saving(epoch + 1, {'state': state, 'class_weights': lanes.class_weights})
                    saved_at, self._unsaved = time.monotonic(), 0
                if self._requests:
                    raise Stopped(self._requests[0], f'{phase.name} epoch {epoch + 1} of {phase.epochs}')
            saved.wait()
            # Read back, so that the next phase starts from what is on disk, as after a kill.
            found = saved.restore(like=tree, at=end)
            if found is None:
                raise UserError(
                    f'{self.directory / phase.name}: the checkpoint that was just written there cannot be read. '
                    'Look after the disk, then start again.'
                )
            return found[1]

    def _epochs_done(self, place: Place | None) -> int:
        return sum(phase.epochs for phase in self._phases[: place.phase]) + place.epoch if place else 0

    def _start_compiling(self, lanes: Lane) -> None:
        if not self.engine.is_compiled and not self.engine.is_compiling:
            print(f'Compiling for {machine.hardware()} ...', flush=True)
            self.engine.start_compiling(lanes)

    def _compile(self, lanes: Lane) -> None:
        self._start_compiling(lanes)
        if not self.engine.is_compiled:
            seconds = self.engine.compile(lanes)
            print(f'Compiled in {seconds:.1f} s', flush=True)

    def _record(self, phase: phases.Phase, epoch: int, result: EpochResult, seconds: float) -> None:
        """Enters an epoch of all lanes that have not diverged, then shows it. epoch: 1-based.

        Where layers learn by themselves nothing classifies yet, so there are no scores.
        """
        rows, predictions = [], []
        for lane, this in enumerate(self._trials):
            sums, logits = [float(part[lane]) for part in result.sums], result.logits[lane]
            logits = logits[: len(this.split.test) + len(this.split.val)]  # without the padding
            if this.trial_id not in self.alive:
                continue
            if not (np.isfinite(sums[0]) and np.isfinite(logits).all()):
                self._commit()
                self._results.diverge(this.trial_id, phase.name, epoch)
                self.alive.remove(this.trial_id)
                done = sum(earlier.epochs for earlier in self._phases[: phase.index]) + epoch - 1
                if phases.is_pretraining(self._config):  # no trial by itself
                    self._progress.drop(this.identity.epochs - done)
                else:
                    self._progress.end_trial('DIVERGED', epochs_left=this.identity.epochs - done)
                continue
            rows.append({
                'trial_id': this.trial_id,
                'dataset': self._dataset,
                'phase': phase.name,
                'epoch': epoch,
                'train_loss': sums[0] / sums[2],
                'train_accuracy': None if phase.layers else sums[1] / sums[2],
                'seconds': seconds / len(self._trials),
                'images': int(sums[2]),
                **({} if phase.layers else self._scores(this, logits)),
            })  # fmt: skip
            predictions += [] if phase.layers else self._predictions(this, logits[: len(this.split.test)])
        if not rows:
            self._unsaved = 0  # nobody will train them again
            raise _AllDiverged
        self._show(phase, epoch, rows, seconds)
        self._rows += rows
        self._latest = predictions
        if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """Commits the epochs that are not yet in the database, and the predictions of the last, in one transaction."""
        if self._rows:
            self._results.record_epoch(self._rows, self._latest)
            for writer in self._writers.values():
                writer.flush()
        self._rows, self._latest, self._committed_at = [], [], time.monotonic()

    def _scores(self, this: Trial, logits: np.ndarray) -> dict[str, float | None]:
        """The columns of an epoch on the test and the validation part. logits: float [test + val].

        {} for a pre-training, which is scored on no image.
        """
        if not len(logits):
            return {}
        test, val = np.split(logits.astype(np.float64), [len(this.split.test)])
        test_labels, val_labels = self.image_set.labels[this.split.test], self.image_set.labels[this.split.val]
        counts = metrics.counts(test_labels, scipy.special.expit(test))
        return {
            'test_loss': _loss(test_labels, test),
            'test_accuracy': (counts.tp + counts.tn) / len(test),
            **counts._asdict(),
            'val_loss': _loss(val_labels, val) if len(val) else None,
            'val_accuracy': float(np.mean((scipy.special.expit(val) >= 0.5) == val_labels)) if len(val) else None,
        }

    def _predictions(self, this: Trial, logits: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                'trial_id': this.trial_id,
                'image_id': self.image_set.ids[image],
                'label': int(self.image_set.labels[image]),
                'probability': float(scipy.special.expit(np.float64(logit))),
                'dataset': self._dataset,
            }
            for image, logit in zip(this.split.test, logits, strict=True)
        ]

    def _show(self, phase: phases.Phase, epoch: int, rows: list[dict[str, Any]], seconds: float) -> None:
        epochs_before = sum(earlier.epochs for earlier in self._phases[: phase.index])
        for row in rows if self._writers else ():
            curves = {name: row[name] for name in CURVES if row.get(name) is not None}
            self._writers[row['trial_id']].add_scalars(curves, epochs_before + epoch)
        loss = float(np.mean([row['train_loss'] for row in rows]))
        accuracy = None if phase.layers else float(np.mean([row['train_accuracy'] for row in rows]))
        images = self._config.augment.samples
        rate = len(self._trials) * images / seconds
        self._progress.update(phase.name, epoch, loss, accuracy, rate, len(rows), images)
        self._unsaved += len(rows)

    def _hide_unsaved(self) -> None:
        """Takes back epochs that will be trained again, since something went wrong before they were in a checkpoint."""
        self._progress.done -= self._unsaved
        self._unsaved = 0


@functools.cache
def _import_the_rest(alone: bool) -> None:
    """Imports in a thread what trials need from their first checkpoint to their end, once a process.

    alone: there is one trial, which is shown in TensorBoard and figures.
    """
    # TensorBoard first: its writer imports PyTorch, if there is one, and half a PyTorch is more than SciPy can bear.
    names = ('bhcnet_jax.display.tensorboard', *LATER, 'bhcnet_jax.display.figures') if alone else LATER

    def import_all() -> None:
        for name in names:
            importlib.import_module(name)

    threading.Thread(target=import_all).start()


def _loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy, nats."""
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))
