"""Trains the trials of a study: which train together, how far, and what happens when something goes wrong.

From one rung of `pruning.py` to the next (without pruning: to the end), trials of equal signature, phases and progress
train together as a `LaneBatch`. If it does not fit into memory, its trials go on with half as many lanes on a device.
If it raises, they go on one at a time, so that only those that raise alone are FAILED. Before trials that begin on
drawn heads come their pre-trainings, each once for all trials that share it.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from bhcnet_jax import files, machine
from bhcnet_jax.display import progress, summary
from bhcnet_jax.display.progress import Progress
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity, Trial
from bhcnet_jax.records.database import Results, score_columns
from bhcnet_jax.records.schema import SUMMARIZED
from bhcnet_jax.run import lane_batch, places, pruning
from bhcnet_jax.run.lane_batch import LaneBatch
from bhcnet_jax.training.engine import Engine, is_out_of_memory, spread_of
from bhcnet_jax.training.lanes import choose_lanes, remember, this_device

if TYPE_CHECKING:
    from bhcnet_jax.display.tensorboard import SweepEvents

ENDED = ('DONE', 'FAILED', 'DIVERGED')  # not PRUNED: the rest of the trial can still be trained


class _FirstFailure(Exception):
    """A trial failed, and the user asked to stop at that."""


class Scheduler:
    """Trains what is missing of some trials, in one process, with the results in one run directory.

    Args:
      study: what the trials belong to.
      wanted: the trials that are to be trained when `run` returns.
      path: the run directory.
      results: its database.
      spread: what the devices share, see `engine.choose_spread`.
      rule: when to prune.
      fail_fast: stop at the first trial that fails or diverges.
    """

    def __init__(
        self,
        study: Study,
        wanted: Sequence[Identity],
        path: pathlib.Path,
        results: Results,
        spread: str,
        rule: pruning.Pruning,
        fail_fast: bool = False,
    ):
        self._study, self._wanted, self._path, self._results = study, wanted, path, results
        self._rule, self._fail_fast = rule, fail_fast
        self._has_told = False
        self._keeps_weights = study.config.engine.keep_weights == 'final'
        self._engines = _Engines(study, path, spread)

    def run(self) -> bool:
        """Trains. Returns whether it printed a single trial's result. Raises the errors of `train.run`."""
        self._heed_older_database()
        self._look()
        racing = [each for each in self._wanted if self._results.status(each.trial_id) not in ('FAILED', 'DIVERGED')]
        with (
            lane_batch.stop_requests() as self._requests,
            self._show() as self._progress,
            self._events() as self._summary,
            contextlib.suppress(_FirstFailure),
        ):
            for rung in self._rule.rungs:
                self._train(racing, rung)
                racing = self._prune(racing, rung)
            self._train(racing, sys.maxsize)
        self._look()
        return self._has_told

    def _heed_older_database(self) -> None:
        """Sets checkpoints aside of which the database knows nothing, since it was restored from an older copy."""
        late = places.set_aside(self._path, self._results.epochs_done())
        left = [trial_id for trial_id in late if self._results.status(trial_id) not in ENDED]
        if left:
            print(
                f'{len(left)} trials have checkpoints of epochs that results.sqlite has not recorded: it is older than '
                'they are. These trials go on from an earlier checkpoint, or start anew.'
            )

    def _find(self) -> dict[str, places.Place]:
        return places.find(self._path, self._results.epochs_done())

    def _look(self) -> None:
        """Finds out where the trials are, and deletes weights that nobody needs."""
        statuses = self._results.statuses()
        self._places = self._find()
        needed = dict.fromkeys(statuses, True)
        if not self._keeps_weights:
            over = (*ENDED, 'PRUNED')
            awaited = {each.starts_from for each in self._wanted if statuses.get(each.trial_id) not in over}
            needed = {trial_id: status not in (*over, 'PRETRAINED') or trial_id in awaited
                      for trial_id, status in statuses.items()}  # fmt: skip
        places.tidy(self._path, needed, self._places)
        self._places = {trial_id: place for trial_id, place in self._places.items() if place.directory.exists()}
        self._ancestors = {}
        if not {'DONE', 'PRETRAINED'}.isdisjoint(statuses.values()):
            self._inherit(statuses)

    def _inherit(self, statuses: Mapping[str, str]) -> None:
        """Lets a trial start from its pre-training, or from a finished trial that lacks only its last phase."""
        for each in self._wanted:
            if statuses.get(each.trial_id) in (None, 'PENDING', 'RUNNING') and each.trial_id not in self._places:
                ended = (name for name in self._study.ancestors(each) if statuses.get(name) in ('DONE', 'PRETRAINED'))
                ancestor = next((name for name in ended if name in self._places), None)
                if ancestor and self._is_whole(ancestor, each):
                    self._ancestors[each.trial_id] = ancestor
                    self._places[each.trial_id] = self._places[ancestor]

    def _is_whole(self, ancestor: str, this: Identity) -> bool:
        """False for a pre-training whose last checkpoint is damaged: it goes on from an earlier one first."""
        return ancestor != this.starts_from or self._places[ancestor].epoch == this.shared_epochs

    def _show(self) -> Progress:
        """The progress display of all wanted trials; what earlier processes did counts as done."""
        ended = self._results.ended()
        first = self._study.first_possible(self._wanted).config if self._wanted else self._study.config
        has_val = bool(self._study.config.split.val_folds)
        pretrainings = self._study.pretrainings(self._wanted)
        every = [*self._wanted, *pretrainings]
        samples = first.augment.samples
        drawn = ((self._study.config_of(each).augment.samples, self._left(each)) for each in pretrainings)
        epochs = sum(each.epochs - each.shared_epochs for each in every)
        saved = epochs - sum(map(self._left, every))
        if saved:
            print(f'Going on: {saved} of {progress.counted(epochs, "epoch")} are saved.', flush=True)
        shown = Progress(
            epochs,
            samples,
            saved,
            # A line per epoch would be too much to read from thousands of trials, or where epochs take milliseconds.
            seconds_between_lines=60 if len(self._wanted) > 1 else 0.25,
            total_trials=len(self._wanted),
            score_name='validation accuracy' if has_val else 'test accuracy',
            extra_images=sum((heads - samples) * left for heads, left in drawn),
        )
        for each in self._wanted:
            if each.trial_id in ended:
                status, score = ended[each.trial_id]
                shown.end_trial(status, progress.label(each.point), score, self._left(each))
        return shown

    @contextlib.contextmanager
    def _events(self) -> Iterator[SweepEvents | None]:
        """The summary of a sweep for TensorBoard; a single trial has its own curves there instead."""
        if len(self._wanted) == 1:
            yield None
            return
        from bhcnet_jax.display.tensorboard import SweepEvents

        swept = {each.trial_id: each.point for each in self._wanted}
        label = self._study.image_set.label
        with SweepEvents(self._path / 'tensorboard' / 'sweep', label, swept) as events:
            for trial_id, scores in self._results.scores().items():
                if trial_id in swept:
                    events.add_trial(trial_id, scores)
            yield events

    def _done(self, this: Identity) -> int:
        """Epochs of a trial that are in a checkpoint."""
        place = self._places.get(this.trial_id)
        return sum(this.phase_epochs[: place.phase]) + place.epoch if place else 0

    def _left(self, this: Identity, ends_at: int = 0) -> int:
        """Epochs of a trial, without those of its pre-training, that are in no checkpoint and come after `ends_at`."""
        return this.epochs - max(self._done(this), this.shared_epochs, ends_at)

    def _prune(self, racing: Sequence[Identity], rung: int) -> list[Identity]:
        """Ranks the trials at a rung. Returns those that stay in the race, and those that end before the rung."""
        at = {each.trial_id: pruning.where(each, rung) for each in racing}
        statuses, losses = self._results.statuses(), {}
        for phase, epoch in sorted({where for where in at.values() if where}):
            found = self._results.val_losses(phase, epoch)
            losses |= {trial_id: found[trial_id] for trial_id, where in at.items() if where == (phase, epoch)
                       and trial_id in found and statuses[trial_id] not in ('FAILED', 'DIVERGED')}  # fmt: skip
        lost = losses.keys() - pruning.survivors(losses, self._rule.keep)
        pruned = [each for each in racing if each.trial_id in lost and statuses[each.trial_id] != 'DONE']
        self._results.prune(each.trial_id for each in pruned)
        for each in pruned:
            self._progress.end_trial('PRUNED', epochs_left=self._left(each, rung))
        return [each for each in racing if each.trial_id not in lost]

    def _train(self, racing: Sequence[Identity], until: int) -> None:
        """Trains to `until` epochs of all phases together, or to the end of a shorter trial."""
        self._look()
        statuses = self._results.statuses()
        # Engines are made for all trials in the race, done or not, so that a resumed sweep has the same engines.
        counts = Counter(each.signature for each in racing)
        left = [each for each in racing if statuses.get(each.trial_id) not in ENDED]
        # A trial at its end that is not DONE was killed before its row was written.
        left = [each for each in left if self._done(each) < until or each.epochs <= until]
        self._train_from_start(left, until, counts)

    def _train_from_start(self, trials: Sequence[Identity], until: int, counts: Mapping[str, int]) -> None:
        """Trains trials, and before them the pre-trainings that they lack."""
        if any(each.starts_from for each in trials):
            trials = self._pretrain(trials)
        self._train_groups(trials, until, counts)

    def _pretrain(self, trials: Sequence[Identity]) -> list[Identity]:
        """Trains what trials go on from and is not there yet. Returns the trials that can be trained."""
        waiting = [each for each in trials if each.starts_from and each.trial_id not in self._places]
        needed = self._study.pretrainings(waiting)
        self._train_groups(needed, sys.maxsize, Counter(each.signature for each in needed))
        self._look()
        lost = [each for each in waiting if each.trial_id not in self._places]
        self._results.begin(_row(each, self._study, None) for each in lost)
        for each in lost:
            self._lose(each)
        if lost and self._fail_fast:
            raise _FirstFailure
        return [each for each in trials if each not in lost]

    def _lose(self, this: Identity) -> None:
        """Ends a trial as its pre-training ended."""
        row = self._results.read('trials', this.starts_from).iloc[0]
        if row.status == 'DIVERGED':
            self._results.diverge(this.trial_id, row.diverged_phase, int(row.diverged_epoch))
            self._progress.end_trial('DIVERGED', epochs_left=self._left(this))
        else:
            self._fail(this, f'Its pre-training {this.starts_from[:12]} failed.\n{row.error}')

    def _train_groups(self, trials: Sequence[Identity], until: int, counts: Mapping[str, int]) -> None:
        """Trains trials of equal progress together, those with the most progress first."""
        groups = {}
        for each in trials:
            place = self._places.get(each.trial_id)
            groups.setdefault((place[:2] if place else (-1, 0), each.signature, each.batch_key), []).append(each)
        for (_, signature, _), group in sorted(groups.items(), key=lambda item: item[0][0], reverse=True):
            while group := self._drop_impossible(group):
                engine = self._engines.get(group[0], counts[signature])
                together, group = group[: engine.capacity], group[engine.capacity :]
                self._train_together(together, until, counts, engine)

    def _drop_impossible(self, group: Sequence[Identity]) -> Sequence[Identity]:
        """Marks the first trials as FAILED, up to one that the images allow. Returns the others."""
        for place, each in enumerate(group):
            try:
                self._study.plan(each)
                return group[place:]
            except UserError as error:
                self._results.begin([_row(each, self._study, None)])
                self._fail(each, str(error))
                if self._fail_fast:
                    raise _FirstFailure from error
        return []

    def _train_together(
        self, together: Sequence[Identity], until: int, counts: Mapping[str, int], engine: Engine
    ) -> None:
        """Trains trials together. If that fails, trains those that are left in other batches of lanes."""
        if self._requests:
            raise lane_batch.Stopped(self._requests[0], f'{self._progress.done} epochs')
        trials = self._plan(together, engine)
        try:
            if trials:
                images = self._study.images(trials[0].config.dataset)
                this = LaneBatch(trials, images, engine, self._path, self._results)
                params = this.train(until, self._places, self._progress, self._requests, len(self._wanted) == 1)
                self._finish(this, trials, params, until)
        except (lane_batch.Stopped, UserError, OSError):
            raise  # not the fault of these trials
        except Exception as error:
            self._mend(error, [each.identity for each in trials], until, counts)
        if self._fail_fast and any(self._results.status(each.trial_id) in ('FAILED', 'DIVERGED') for each in together):
            raise _FirstFailure

    def _plan(self, together: Sequence[Identity], engine: Engine) -> list[Trial]:
        """Marks trials as RUNNING. Returns those that the images allow, ready to be trained; the others are FAILED."""
        self._results.begin(_row(each, self._study, engine) for each in together)
        trials = []
        for each in together:
            if each.trial_id in self._ancestors:
                self._results.inherit(each.trial_id, self._ancestors[each.trial_id])
            try:
                trials.append(self._study.plan(each))
            except UserError as error:
                self._fail(each, str(error))
        return trials

    def _finish(self, this: LaneBatch, trials: Sequence[Trial], params: Any, until: int) -> None:
        """Scores the trials of a batch of lanes, if they are at their end."""
        if trials[0].identity.epochs > until:
            return
        if self._study.is_pretraining(trials[0].identity):
            self._results.end_pretraining(this.alive)
            return
        scores = {each.trial_id: _score(each, self._results) for each in trials if each.trial_id in this.alive}
        if len(self._wanted) == 1 and scores:
            # The answer first. Both before the trial is DONE, so that a run killed in between tells and draws again.
            self._progress.stop()
            summary.print_result(trials[0], this.image_set, scores[trials[0].trial_id])
            self._has_told = True
            weights = jax.tree.map(lambda leaf: leaf[0], params)
            summary.draw(trials[0], this.image_set, weights, self._results, self._path / 'figures')
        self._results.finish_many(scores)
        for each in trials:
            if each.trial_id in scores:
                found = scores[each.trial_id]
                score = found['accuracy'] if found['val_accuracy'] is None else found['val_accuracy']
                self._progress.end_trial('DONE', progress.label(each.identity.point), score)
                if self._summary:
                    self._summary.add_trial(each.trial_id, {name: found[name] for name in SUMMARIZED})
        if self._summary:
            self._summary.flush()
        if not self._keeps_weights:
            places.drop(this.directory)

    def _mend(self, error: Exception, together: Sequence[Identity], until: int, counts: Mapping[str, int]) -> None:
        """Goes on after lanes raised: trains those without a result in smaller batches, or fails the last one."""
        self._look()
        left = [each for each in together if self._results.status(each.trial_id) == 'RUNNING']
        too_large = is_out_of_memory(error) and self._engines.halve(together[0].signature)
        if too_large or isinstance(error, places.UnreadableError):
            self._train_from_start(left, until, counts)
        elif len(left) > 1:
            for each in left:
                self._train_from_start([each], until, counts)
        elif left:
            self._fail(left[0], ''.join(traceback.format_exception(error)))
        else:  # every row is final, so no trial raised it
            raise error

    def _fail(self, this: Identity, error: str) -> None:
        self._results.fail(this.trial_id, error)
        if self._study.is_pretraining(this):
            self._progress.drop(self._left(this))
        else:
            self._progress.end_trial('FAILED', epochs_left=self._left(this))


class _Engines:
    """An engine for every signature, made when it is first needed."""

    def __init__(self, study: Study, path: pathlib.Path, spread: str):
        self._study, self._spread = study, spread
        self._file = path / 'lanes.json'  # the choice for each signature, so that a resumed sweep computes alike
        self._chosen = {}
        with contextlib.suppress(FileNotFoundError):
            shape = {str: {'asked': str, 'hardware': str, 'lanes': int}}
            self._chosen = files.read_json(self._file, shape, 'Delete it; lanes are then chosen anew.')
        self._made: dict[tuple[str, int], Engine] = {}

    def get(self, this: Identity, count: int) -> Engine:
        """The engine for `count` trials like this one. UserError: it cannot be made."""
        # No more lanes than there are trials, so that those that pruning leaves do not train beside padding.
        spread = spread_of(self._study.config_of(this), self._spread)
        devices = 1 if spread == 'batch' else jax.device_count()
        lanes = min(self._lanes(this), -(-count // devices))
        if (this.signature, lanes) not in self._made:
            planned = self._study.plan(this)
            images = self._study.images(planned.config.dataset)
            engine = Engine(planned.config, images.images, images.labels, count, lanes=lanes, spread=spread)
            self._made[this.signature, lanes] = engine
        return self._made[this.signature, lanes]

    def _lanes(self, this: Identity) -> int:
        """How many lanes a device trains at most: the earlier choice on the same hardware, else a new one."""
        asked, found = self._study.config.engine.lanes, self._chosen.get(this.signature)
        made_for = {'asked': asked, 'hardware': machine.hardware()}
        if found is None or any(found[key] != value for key, value in made_for.items()):
            device = this_device()
            lanes, reason = choose_lanes(self._study.plan(this).config, this.signature, device)
            if reason:
                what = f'Each {device.kind} trains up to {lanes} trials together: {reason}.'
                print(f'{what} --config.engine.lanes=N says otherwise.', flush=True)
            self._choose(this.signature, {**made_for, 'lanes': lanes})
        return self._chosen[this.signature]['lanes']

    def _choose(self, signature: str, choice: dict[str, Any]) -> None:
        self._chosen[signature] = choice
        files.write_json(self._file, self._chosen)

    def halve(self, signature: str) -> bool:
        """Halves the lanes of a signature and drops its engines. False: there was one lane only."""
        made = [lanes for name, lanes in self._made if name == signature]  # perhaps fewer, as many as there are trials
        lanes = min([self._chosen[signature]['lanes'], *made]) // 2
        if not lanes:
            return False
        self._choose(signature, {**self._chosen[signature], 'lanes': lanes})
        if self._study.config.engine.lanes == 'auto':
            remember(this_device(), signature, lanes)
        for key in [key for key in self._made if key[0] == signature]:
            self._made.pop(key).close()
        print(f'Out of memory: from here on each device trains at a time: {lanes}', flush=True)
        return True


def _row(this: Identity, study: Study, engine: Engine | None) -> dict[str, Any]:
    """The columns of a trial that are known before it is trained. engine: None for one that cannot be trained."""
    config, flags = study.config_of(this), machine.compiler_flags()
    columns = study.columns_of_pretraining(config) if study.is_pretraining(this) else study.columns_of(config)
    settings = f'devices {len(engine.devices)}, lanes {engine.lanes}, spread {engine.spread}' if engine else 'none'
    return {
        'trial_id': this.trial_id,
        'recipe': config.recipe,
        'model': config.model.name,
        'phase': this.phase_names[-1],
        'epochs': this.phase_epochs[-1],
        'phases': '+'.join(this.phase_names),
        'recipe_id': this.recipe_id,
        'engine': f'{settings}, {flags}' if flags else settings,
        **columns,
        'settings': json.dumps(_settings(config)),
    }


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The config of one trial, so that it can be rebuilt, without what changes no result."""
    tree = {name: part for name, part in config.to_dict().items() if name not in ('engine', 'sweep', 'trials')}
    tree['dataset'] = {name: value for name, value in tree['dataset'].items() if name != 'dir'}
    return tree


def _score(this: Trial, results: Results) -> dict[str, Any]:
    """A trained trial's scores, from its predictions and epochs in the database."""
    predictions, epochs = results.read('predictions', this.trial_id), results.read('epochs', this.trial_id)
    has_val = len(this.split.val) > 0
    return {
        **score_columns(predictions.label.to_numpy(), predictions.probability.to_numpy()),
        **{name: float(epochs[name].iloc[-1]) if has_val else None for name in ('val_loss', 'val_accuracy')},
        'train_seconds': float(epochs.seconds.sum()),
        'images_per_second': float(epochs.images.sum() / epochs.seconds.sum()),
    }
