"""A study: the data set, the splits and the trials that a config asks for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from bhcnet_jax import machine, models
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import groups, phases, splits, sweep, trial
from bhcnet_jax.plan.splits import NO_SPLIT, Split
from bhcnet_jax.plan.sweep import Shard
from bhcnet_jax.plan.trial import Identity, Trial

REMEMBERED = 64  # planned trials; one has an index for each of its augmented images


class Study:
    """The trials of a config, known by their identities. Each is planned when its turn comes, and then remembered.

    The config is checked and resolved here. From here on it cannot be written to.

    Args:
      config: see `configs/base.py`.
      axes: of the sweep, in the grammar of `sweep.py`; '': config.sweep.

    Raises:
      UserError: one line for the user.
    """

    def __init__(self, config: ConfigDict, axes: str = ''):
        trial.check(config)
        self._axes = sweep.parse(axes or config.sweep, config)
        self._listed = sweep.check_points(config.trials, config) if config.trials else ({},)
        self._settings = {**config.to_dict(), 'trials': ()}  # a dict is read fifty times as fast
        self.config = FrozenConfigDict(self._settings)
        self.swept = sorted({key for axis in self._axes for key in axis.keys} | set().union(*self._listed))
        sweep.refuse_overlap(self._axes, self._listed)
        sweep.refuse_too_many(len(self._listed) * sweep.count(self._axes))
        self._kinds: dict[tuple[int, bool], ImageSet] = {}
        self._splits: dict[tuple[Any, ...], Split] = {}
        self._pretrainings: dict[str, Identity] = {}
        self._planned: dict[str, Trial] = {}
        self.image_set = self.images(config.dataset)
        self.grouping = groups.find_groups(self.image_set)

    def images(self, dataset: ConfigDict) -> ImageSet:
        """The images at the size, and equalised or not, that the `dataset` section of a trial's config says."""
        kind = (dataset.image_size, dataset.equalise)
        if kind not in self._kinds:
            self._kinds[kind] = input_pipeline.load(dataset)
        return self._kinds[kind]

    def resolution(self, wanted: Sequence[Identity]) -> int:
        """`ImageSet.resolution` of those trials whose images are equalised; 0 if there are none."""
        usual = self.config.dataset.equalise
        equalised = next((each for each in wanted if each.point.get('dataset.equalise', usual)), None)
        return self.images(self.config_of(equalised).dataset).resolution if equalised else 0

    def trials(self, shard: Shard) -> list[Identity]:
        """The trials of a shard. UserError if a trial of the sweep is impossible, or two are the same."""
        every = list(self._identities())
        different = len({each.trial_id for each in every})
        if different < len(every):
            raise UserError(
                f'The sweep has {len(every)} points, but only {different} different trials: one of its axes sets a key '
                'that these recipes do not use, such as a strength of another augmentation policy. Leave it out.'
            )
        return [each for each in every if shard.takes(each.trial_id)]

    def _identities(self) -> Iterator[Identity]:
        for listed in self._listed:
            for axes_point in sweep.points(self._axes):
                point = {**listed, **axes_point}
                settings = trial.set_point(self._settings, point)
                trial.check(settings, changed=point)
                models.check_weights(settings['model'])
                split, labels = self._split(settings['split']), self.image_set.labels
                yield trial.identify(settings, split, self.image_set.fingerprint, point, labels)

    def _split(self, part: Mapping[str, Any]) -> Split:
        key = tuple(part[name] for name in ('scheme', 'folds', 'fold', 'seed', 'val_folds', 'train_folds'))
        if key not in self._splits:
            *outer, seed, val_folds, train_folds = key
            labels, groups = self.image_set.labels, self.grouping.groups
            try:
                split = splits.split(labels, groups, *outer, seed)
                if val_folds:
                    split = splits.hold_out_validation(split, labels, groups, val_folds, seed)
                if train_folds > 1:
                    split = splits.thin_out(split, labels, groups, train_folds, seed)
            except ValueError as error:
                raise UserError(str(error)) from error
            self._splits[key] = split
        return self._splits[key]

    def config_of(self, this: Identity) -> FrozenConfigDict:
        """The config of one trial."""
        return FrozenConfigDict(trial.set_point(self._settings, this.point))

    def split_of(self, config: ConfigDict) -> Split:
        """The split of one trial, from its config."""
        return self._split(config.split)

    def columns_of(self, config: ConfigDict) -> dict[str, Any]:
        """The columns of a trial's row on its data, split, code and hardware, from its config."""
        split = self.split_of(config)
        return {
            **self.columns_of_pretraining(config),
            'fold': config.split.fold,
            'n_test': len(split.test),
            'n_val': len(split.val),
            'scheme': config.split.scheme,
            'folds': config.split.folds,
            'split_seed': config.split.seed,
            'split_digest': split.digest,
        }

    def columns_of_pretraining(self, config: ConfigDict) -> dict[str, Any]:
        """The same of a pre-training, which has no split; its data fingerprint is that of the study."""
        return {
            'dataset': self.image_set.label,
            'seed': config.seed,
            'data_fingerprint': self.image_set.fingerprint,
            'code': machine.code_version(),
            'hardware': machine.hardware(),
        }

    def pretrainings(self, trials: Iterable[Identity]) -> list[Identity]:
        """The pre-trainings from which trials go on, each once."""
        names = {each.starts_from: each for each in trials if each.starts_from}
        for name, each in names.items():
            if name not in self._pretrainings:
                self._pretrainings[name] = trial.pretraining(self.config_of(each), each.point)
        return [self._pretrainings[name] for name in names]

    def is_pretraining(self, this: Identity) -> bool:
        """Whether it is a pre-training, and no trial by itself."""
        return this.trial_id in self._pretrainings

    def ancestors(self, this: Identity) -> list[str]:
        """Ids of what this trial can go on from, the furthest first: one that lacks only its last phase, pre-training.

        A trial on drawn heads alone is none: what it has learnt is the pre-training.
        """
        before = this.phase_names[:-1]
        lacks_one = [self._ancestor(this)] if before not in ((), (phases.DRAWN,)) else []
        return [*lacks_one, *filter(None, [this.starts_from])]

    def _ancestor(self, this: Identity) -> str:
        settings = trial.set_point(self._settings, {**this.point, 'phases': this.phase_names[:-1]})
        split, labels = self._split(settings['split']), self.image_set.labels
        return trial.identify(settings, split, self.image_set.fingerprint, labels=labels).trial_id

    def plan(self, this: Identity) -> Trial:
        """The trial of an identity, ready to be trained. The last REMEMBERED are planned once.

        UserError: these images do not allow it.
        """
        if this.trial_id not in self._planned:
            config = self.config_of(this)
            try:
                if self.is_pretraining(this):
                    planned = Trial(this, config, NO_SPLIT, (phases.drawn(config),))
                else:
                    planned = trial.plan(this, config, self.image_set.labels, self.split_of(config))
            except ValueError as error:
                raise UserError(str(error)) from error
            if len(self._planned) >= REMEMBERED:
                self._planned.pop(next(iter(self._planned)))  # the oldest
            self._planned[this.trial_id] = planned
        return self._planned[this.trial_id]

    def first_possible(self, trials: Sequence[Identity]) -> Trial:
        """The first trial that these images allow, ready to be trained. UserError if they allow none."""
        error = None
        for each in trials:
            try:
                return self.plan(each)
            except UserError as found:
                error = error or found
        raise error or ValueError('no trials')
