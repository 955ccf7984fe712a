"""What a config asks for: a data set, its splits, and the trials that the config's sweep spans on it."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from bhcnet_jax import machine
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import groups, splits, sweep, trial
from bhcnet_jax.plan.splits import Split
from bhcnet_jax.plan.sweep import Shard
from bhcnet_jax.plan.trial import Identity, Trial


class Study:
    """The trials of a config, known by their identities; each is planned only when its turn comes.

    Args:
      config: see `configs/base.py`.
      axes: of the sweep, in the grammar of `sweep.py`; '': config.sweep.

    Raises:
      UserError: one line for the user.
    """

    def __init__(self, config: ConfigDict, axes: str = ''):
        trial.check(config)
        self.config = config
        self._axes = sweep.parse(axes or config.sweep, config)
        self._listed = sweep.check_points(config.trials, config) if config.trials else ({},)
        self.swept = sorted({key for axis in self._axes for key in axis.keys} | set().union(*self._listed))
        sweep.refuse_overlap(self._axes, self._listed)
        self._kinds: dict[tuple[int, bool], ImageSet] = {}
        self._splits: dict[tuple[Any, ...], Split] = {}
        self.image_set = self.images(config.dataset)
        self.grouping = groups.find_groups(self.image_set)

    def images(self, dataset: ConfigDict) -> ImageSet:
        """The images in the size, and equalised or not, that the section of a trial's config says."""
        kind = (dataset.image_size, dataset.equalise)
        if kind not in self._kinds:
            self._kinds[kind] = input_pipeline.load(dataset)
        return self._kinds[kind]

    def trials(self, shard: Shard) -> list[Identity]:
        """The trials of a shard. UserError if one of the sweep's is impossible, or two are the same."""
        every = list(self._identities())
        different = len({each.trial_id for each in every})
        if different < len(every):
            raise UserError(
                f'The sweep has {len(every)} points, but only {different} different trials: one of its axes is over a '
                'key that these recipes do not use, such as a strength of another augmentation policy. Leave it out.'
            )
        return [each for each in every if shard.takes(each.trial_id)]

    def _identities(self) -> Iterator[Identity]:
        base = self.config.to_dict()
        for listed in self._listed:
            for axes_point in sweep.points(self._axes):
                point = {**listed, **axes_point}
                settings = trial.set_point(base, point)
                trial.check(settings, changed=point)
                split, labels = self._split(settings['split']), self.image_set.labels
                yield trial.identify(settings, split, self.image_set.fingerprint, point, labels)

    def _split(self, part: Mapping[str, Any]) -> Split:
        key = tuple(part[name] for name in ('scheme', 'folds', 'fold', 'seed', 'val_folds'))
        if key not in self._splits:
            *outer, seed, val_folds = key
            labels, groups = self.image_set.labels, self.grouping.groups
            try:
                split = splits.split(labels, groups, *outer, seed)
                if val_folds:
                    split = splits.hold_out_validation(split, labels, groups, val_folds, seed)
            except ValueError as error:
                raise UserError(str(error)) from error
            self._splits[key] = split
        return self._splits[key]

    def config_of(self, this: Identity) -> ConfigDict:
        """The config of one trial."""
        config = self.config.copy_and_resolve_references()
        config.update_from_flattened_dict(dict(this.point))
        return config

    def split_of(self, config: ConfigDict) -> Split:
        """The split of one trial, from its config."""
        return self._split(config.split)

    def columns_of(self, config: ConfigDict) -> dict[str, Any]:
        """What the row of a trial says of its data, its split and what it is trained by, from its config."""
        split = self.split_of(config)
        return {
            'dataset': self.image_set.label,
            'seed': config.seed,
            'fold': config.split.fold,
            'n_test': len(split.test),
            'n_val': len(split.val),
            'scheme': config.split.scheme,
            'folds': config.split.folds,
            'split_seed': config.split.seed,
            'data_fingerprint': self.image_set.fingerprint,
            'split_digest': split.digest,
            'code': machine.code_version(),
            'hardware': machine.hardware(),
        }

    def ancestor(self, this: Identity) -> str:
        """Id of the trial that is the same but for its last phase; '' for a trial of one phase."""
        if len(this.phase_names) == 1:
            return ''
        config = self.config_of(this)
        config.phases = config.phases[:-1]
        split, labels = self.split_of(config), self.image_set.labels
        return trial.identify(config, split, self.image_set.fingerprint, labels=labels).trial_id

    def plan(self, this: Identity) -> Trial:
        """The trial of an identity, ready to be trained. UserError: these images do not allow it."""
        config = self.config_of(this)
        try:
            return trial.plan(this, config, self.image_set.labels, self.split_of(config))
        except ValueError as error:
            raise UserError(str(error)) from error
