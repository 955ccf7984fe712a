"""Trains a batch of trials through their phases, with their checkpoints and their rows in the database."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from tensorboardX import SummaryWriter

from bhcnet_jax import checkpoint, metrics, optim, phases, run_dir, steps, trial
from bhcnet_jax.engine import Engine, EpochResult
from bhcnet_jax.input_pipeline import ImageSet
from bhcnet_jax.report.progress import Progress
from bhcnet_jax.results import Results
from bhcnet_jax.trial import Trial

TRIALS = 'trials.json'  # in the directory of a batch's checkpoints


class _AllDiverged(Exception):
    """No lane of the batch is worth another epoch."""


class Stopped(Exception):
    """Training ended early on request with everything saved; `signum` is the signal that asked for it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
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


class Batch:
    """Trials of one signature on their way through the phases, and where their results go.

    Trees have a leading axis [lanes], one lane for each trial. A lane whose loss is not finite any more is DIVERGED
    in the database and is not recorded from then on; the others go on.

    Args:
      trials: of equal `trial.batch_key`.
      image_set: what they train on.
      engine: for their signature, with room for as many lanes.
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
        self._phases = trials[0].phases  # the same in all lanes, but for their sources
        self._dataset = run_dir.dataset_label(image_set)
        self._directory = _directory(path, [each.trial_id for each in trials])

    def train(self, progress: Progress, requests: list[int], with_tensorboard: bool) -> Any:
        """Trains to the end, from the newest checkpoint on. Returns the final weights, numpy [lanes, ...].

        requests: signals that ask to stop, see `stop_requests`; raises Stopped at the end of the epoch. Returns None as
        soon as all lanes have diverged.
        """
        ids = [each.trial_id for each in self._trials]
        self._directory.mkdir(parents=True, exist_ok=True)
        run_dir.write_json(self._directory / TRIALS, ids)
        self._alive = {trial_id for trial_id in ids if self._results.status(trial_id) != 'DIVERGED'}
        lanes = trial.stack(self._trials, 0)
        tree = {'state': self.engine.init(lanes), 'class_weights': lanes.class_weights}
        self._progress, self._requests = progress, requests
        with contextlib.ExitStack() as stack:
            self._writers = {}
            if with_tensorboard:
                self._writers = {trial_id: stack.enter_context(self._writer(trial_id)) for trial_id in ids}
            with contextlib.suppress(_AllDiverged):
                for phase in self._phases:
                    tree = self._run_phase(phase, tree)
                return tree['state'].params
        return None

    def alive(self) -> list[Trial]:
        """The trials that have not diverged, once `train` has begun."""
        return [each for each in self._trials if each.trial_id in self._alive]

    def _writer(self, trial_id: str) -> SummaryWriter:
        writer = SummaryWriter(str(self.path / 'tensorboard' / trial_id[:12]))
        writer.add_text('dataset', self._dataset)
        return writer

    def _run_phase(self, phase: phases.Phase, before: dict[str, Any]) -> dict[str, Any]:
        """Trains a phase, from its newest checkpoint where there is one. before: what the phase before ended with."""
        lanes = trial.stack(self._trials, phase.index)
        metadata = {'dataset': self._dataset, 'phase': phase.name}
        with contextlib.closing(checkpoint.Checkpoints(self._directory / phase.name, metadata)) as checkpoints:
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
        states = self.engine.to_devices(tree['state'])
        for epoch in range(done, phase.epochs):
            lanes = lanes.replace(
                epoch=np.full(count, epoch, np.int32), learning_rates=np.stack([rate[epoch] for rate in rates])
            )
            start = time.perf_counter()
            states, result = self.engine.epoch(states, lanes)
            seconds = time.perf_counter() - start
            self._record(phase, epoch + 1, result, seconds)
            stop = self._requests and epoch + 1 < phase.epochs
            if (epoch + 1) % config.engine.checkpoint_every == 0 or epoch + 1 == phase.epochs or stop:
                state = self.engine.to_host(states, count)
                checkpoints.save(epoch + 1, {'state': state, 'class_weights': lanes.class_weights})
            if self._requests:
                raise Stopped(self._requests[0], f'{phase.name} epoch {epoch + 1} of {phase.epochs}')

    def _record(self, phase: phases.Phase, epoch: int, result: EpochResult, seconds: float) -> None:
        """Commits an epoch of all lanes that are alive, then shows it. epoch: 1-based."""
        rows, predictions = [], []
        for lane, this in enumerate(self._trials):
            sums, logits = [float(part[lane]) for part in result.sums], result.logits[lane]
            if this.trial_id not in self._alive:
                continue
            if not (np.isfinite(sums[0]) and np.isfinite(logits).all()):
                self._results.diverge(this.trial_id, phase.name, epoch)
                self._alive.remove(this.trial_id)
                continue
            rows.append({
                'trial_id': this.trial_id,
                'dataset': self._dataset,
                'phase': phase.name,
                'epoch': epoch,
                'train_loss': sums[0] / sums[2],
                'train_accuracy': sums[1] / sums[2],
                'seconds': seconds / len(self._trials),
                'images': int(sums[2]),
                **self._test_scores(this, logits),
            })  # fmt: skip
            predictions += self._predictions(this, logits)
        self._results.record_epoch(rows, predictions)
        if not rows:
            raise _AllDiverged
        self._show(phase, epoch, rows, seconds)

    def _test_scores(self, this: Trial, logits: np.ndarray) -> dict[str, float]:
        labels = self.image_set.labels[this.split.test]
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
                'image_id': self.image_set.ids[image],
                'label': int(self.image_set.labels[image]),
                'probability': float(expit(np.float64(logit))),
                'dataset': self._dataset,
            }
            for image, logit in zip(this.split.test, logits, strict=True)
        ]

    def _show(self, phase: phases.Phase, epoch: int, rows: list[dict[str, Any]], seconds: float) -> None:
        epochs_before = sum(earlier.epochs for earlier in self._phases[: phase.index])
        for row in rows if self._writers else ():
            for name in ('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy'):
                self._writers[row['trial_id']].add_scalar(name, row[name], epochs_before + epoch)
            self._writers[row['trial_id']].flush()
        loss, accuracy = (float(np.mean([row[name] for row in rows])) for name in ('train_loss', 'train_accuracy'))
        images = len(self._trials) * self._config.augment.samples
        self._progress.update(phase.name, epoch, loss, accuracy, images / seconds)

    def drop(self) -> None:
        """Deletes the batch's checkpoints; its rows must be final before."""
        drop(self.path, [each.trial_id for each in self._trials])


def saved(path: pathlib.Path) -> list[list[str]]:
    """Trial ids, lane by lane, of the batches that have checkpoints in a run directory."""
    return [json.loads(file.read_text()) for file in sorted((path / 'checkpoints').glob(f'*/{TRIALS}'))]


def drop(path: pathlib.Path, trial_ids: Sequence[str]) -> None:
    """Deletes the checkpoints of the batch of these trials."""
    directory = _directory(path, trial_ids)
    (directory / TRIALS).unlink()  # first, so that a deletion cut short leaves no batch to go on with
    shutil.rmtree(directory)


def _directory(path: pathlib.Path, trial_ids: Sequence[str]) -> pathlib.Path:
    return path / 'checkpoints' / hashlib.sha256(' '.join(trial_ids).encode()).hexdigest()[:12]
