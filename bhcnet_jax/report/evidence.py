"""From results databases and run directories to what a report speaks of: recipes with their pooled predictions.

S seeds, N images. Predictions of all folds are taken together: an image is scored once per seed, by the fold that was
not trained on it. Intervals resample groups of look-alike images, since two of them say little more than one.
"""

import dataclasses
import functools
import pathlib
import pkgutil
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bhcnet_jax import configs
from bhcnet_jax.configs import base
from bhcnet_jax.display.summary import MARK
from bhcnet_jax.errors import UserError
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.records import evaluations, merge, recipes, run_files, schema
from bhcnet_jax.report import holdouts, settings
from bhcnet_jax.report.holdouts import Holdouts
from bhcnet_jax.report.page import Number
from bhcnet_jax.statistics import bootstrap, comparison
from bhcnet_jax.statistics.bootstrap import Estimate, Metric
from bhcnet_jax.statistics.comparison import Pooled
from bhcnet_jax.training import classifiers

KINDS = {
    'network': 'network',
    'shortcut': 'shortcut baseline',
    'baseline': 'baseline on pixels',
    'features': "classifier on a network's features",
}
NAMES = {'auc': 'AUC', 'f1': 'F1', 'log_loss': 'log-loss (nats)', 'brier': 'Brier score'}  # of metrics, in a head
STYLES = {'auc': 'plain', 'log_loss': 'plain', 'brier': 'plain'}  # of metrics; the others are shares, in per cent
INTERVALS = (
    'Intervals are 95 % intervals over images: the percentile bootstrap, '
    f'{recipes.DRAWS} draws of groups of look-alike images with all their seeds. Shares have the Wilson interval where '
    'all draws agree, as at 100 %, and where a single seed was scored on images without look-alikes.'
)
WHERE = ('name', 'dir', 'label', 'columns', 'positive')  # keys of `dataset`
PAPERS_DATA = 'head_ct'  # what the data set of the paper is called
STAND_IN = 'PHANTOM'  # synthetic images in its place


@dataclasses.dataclass(frozen=True)
class RunDir:
    """What the files of a run directory say; {} or [] for one that is not there."""

    path: pathlib.Path
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe with all its DONE trials on the one data set of the report.

    Attributes:
      kind: 'network'; 'shortcut', a baseline that never looks at the head; or 'baseline', on pixels.
      trials: their rows. pooled: their predictions. folds: the fold that scored each image, [N].
      groups: the group of each image, [N].
      settings: dotted key -> value; {} where no run directory tells them.
    """

    recipe_id: str
    label: str
    kind: str
    trials: pd.DataFrame
    pooled: Pooled
    folds: np.ndarray
    groups: np.ndarray
    settings: Mapping[str, Any]

    @functools.cached_property
    def scores(self) -> dict[str, Estimate]:
        """Every metric with its interval over images and its spread over seeds."""
        return self.estimate(bootstrap.METRICS)

    def estimate(self, measures: Mapping[str, Metric]) -> dict[str, Estimate]:
        """See `recipes.estimate`."""
        return recipes.estimate(self.pooled.labels, self.pooled.probabilities, self.groups, measures)

    def n(self, name: str) -> int:
        """Images that a metric is of."""
        return recipes.images_of(name, self.pooled.labels, self.pooled.probabilities)

    def number(self, name: str) -> Number:
        """A metric as a cell of a table."""
        found = self.scores[name]
        return Number(found.mean, found.low, found.high, self.n(name), STYLES.get(name, 'percent'))

    @functools.cached_property
    def mean_probability(self) -> np.ndarray:
        """Over seeds, [N]."""
        return np.nanmean(self.pooled.probabilities, axis=0)

    @property
    def ensemble(self) -> 'Recipe':
        """The recipe that answers with the mean probability over its seeds, as if it had one seed."""
        pooled = self.pooled._replace(seeds=self.pooled.seeds[:1], probabilities=self.mean_probability[None])
        return dataclasses.replace(self, pooled=pooled)

    @property
    def folds_done(self) -> str:
        """See `recipes.folds_done`."""
        return recipes.folds_done(self.trials)

    @property
    def config_name(self) -> str:
        """The shipped config that is called as the recipe; 'balanced' where there is none."""
        name = self.trials.recipe.iloc[0]
        return name if name in {each.name for each in pkgutil.iter_modules(configs.__path__)} else 'balanced'

    @property
    def baseline_command(self) -> str:
        """What trains the baselines on the same folds."""
        first, seeds = self.trials.iloc[0], self.trials.seed
        scheme = f'--config.split.scheme={first.scheme} --config.split.folds={first.folds}'
        if not pd.isna(first.split_seed) and first.split_seed:
            scheme += f' --config.split.seed={first.split_seed}'
        folds = f' split.fold=0:{first.folds}' if first.scheme == 'kfold' else ''
        return f"python -m bhcnet_jax.baselines --config=balanced {scheme} --sweep='seed=0:{seeds.max() + 1}{folds}'"

    def shares_folds(self, other: 'Recipe') -> bool:
        """Whether both were scored on the same images, each by a fold with the same test part."""
        return self.parts == other.parts

    @functools.cached_property
    def parts(self) -> tuple[bytes, tuple[str, ...]]:
        """How the images are parted, whatever the folds are called, and which images they are."""
        return pd.factorize(self.folds)[0].tobytes(), tuple(self.pooled.image_ids)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that a report speaks of.

    Attributes:
      recipes: by accuracy, best first. holdouts: recipes on splits drawn again and again, which are none of
        `recipes`. trials: of all statuses. run_dirs: those that the trials are from.
      mark: words for synthetic images, or ''. dataset, fingerprint: of all finished trials.
      data: a run directory's data.json of that fingerprint, {} if there is none. warnings: of `merge.merge`.
      elsewhere: what `bhcnet_jax.evaluate` found on other images, see `evaluation.evaluate`.
    """

    recipes: Sequence[Recipe]
    holdouts: Sequence[Holdouts]
    trials: pd.DataFrame
    run_dirs: Sequence[RunDir]
    mark: str
    dataset: str
    fingerprint: str
    data: Mapping[str, Any]
    warnings: Sequence[str]
    elsewhere: Sequence[Mapping[str, Any]]

    @property
    def classes(self) -> tuple[str, str]:
        """How the negative and the positive class are called."""
        negative, positive = self.data.get('images') or ('negative', 'positive')
        return negative, positive

    @property
    def is_of_paper(self) -> bool:
        """Whether the images are those of the paper, or stand in for them; volumes do not."""
        return self.fingerprint == bhcnet.FINGERPRINT or (self.dataset == STAND_IN and not self.has_volumes)

    @property
    def has_volumes(self) -> bool:
        """Whether an image is a whole patient."""
        return any(each.settings.get('dataset.slices', 1) > 1 for each in self.recipes)

    def baselines_for(self, recipe: Recipe) -> str:
        """How to get the baselines of a recipe, which has none."""
        if self.has_volumes:
            return 'they see single images, and these are volumes'
        return f'`{self.command(recipe.baseline_command)}`'

    def command(self, command: str) -> str:
        """A command of `main` or `baselines` with the flags of these images, as a shell takes it."""
        flags = [f'--config.dataset.{key}={value}' for key, value in self.data_flags.items()]
        return ' '.join([command, shlex.join(flags)]).strip()

    @functools.cached_property
    def data_flags(self) -> dict[str, str]:
        """Keys of `dataset` that say where the images are and how to read them, where they are not the defaults."""
        defaults = base.get_config().dataset
        found = next((each.config['config'].get('dataset', {}) for each in self.run_dirs if each.config), {})
        return {key: found[key] for key in WHERE if found.get(key, defaults[key]) != defaults[key]}

    @property
    def paths(self) -> str:
        """The run directories, as a shell takes them."""
        return shlex.join(str(each.path) for each in self.run_dirs)

    def best(self, kind: str, like: Recipe | None = None) -> Recipe | None:
        """The most accurate recipe of a kind, of those with the most images; None if there is none.

        like: only recipes on the folds of this one.
        """
        found = [each for each in self.recipes if each.kind == kind and (like is None or each.shares_folds(like))]
        most = max((len(each.pooled.labels) for each in found), default=0)
        return next((each for each in found if len(each.pooled.labels) == most), None)

    @property
    def leading(self) -> list[Recipe]:
        """What curves are drawn of: the best network, and the best of each kind of baseline on the same folds."""
        best = self.best('network')
        found = [best, *(self.best(kind, best) for kind in ('shortcut', 'baseline'))]
        return [each for each in found if each] or list(self.recipes[:1])

    def epochs(self, recipe: Recipe) -> pd.DataFrame:
        """A row per epoch of a recipe's trials: its columns in the database, seed, fold; step: 1-based over phases."""
        frames = [_read_epochs(pathlib.Path(file), rows) for file, rows in recipe.trials.groupby('file')]
        found = pd.concat(frames, ignore_index=True)
        found['step'] = found.groupby('trial_id').cumcount() + 1
        return found


def gather(directories: Sequence[pathlib.Path]) -> Evidence:
    """Reads run directories. UserError, one line: as of `merge.merge`, nothing finished, or several data sets."""
    merged = merge.merge(directories)
    done = merged.trials[merged.trials.status == 'DONE']
    done = done[done.index.isin(merged.predictions.trial)]
    if done.empty:
        where = ', '.join(map(str, directories))
        raise UserError(f'{where}: no finished trial among {len(merged.trials)}; train first, then report.')
    dataset, fingerprint = _only_one(done)
    run_dirs = [_run_dir(pathlib.Path(path)) for path in dict.fromkeys(pathlib.Path(file).parent for file in done.file)]
    data = next((each.data for each in run_dirs if each.data.get('fingerprint') == fingerprint), {})
    known = settings.of_recipes([(each.config, each.starts) for each in run_dirs], set(done.recipe_id))
    group_of = recipes.read_groups(done.file).get(fingerprint, {})
    repeated = holdouts.find(done, known)
    joined = {recipe_id for each in repeated for recipe_id in each.trials.recipe_id}
    if joined == set(done.recipe_id):  # a report needs recipes
        repeated, joined = [], set()
    found = _recipes(done[~done.recipe_id.isin(joined)], merged.predictions, group_of, known)
    mark = MARK if dataset == STAND_IN else ''
    of_runs = (found, repeated, merged.trials, run_dirs, mark, dataset, fingerprint, data, merged.warnings)
    return Evidence(*of_runs, _elsewhere(directories))


def _elsewhere(directories: Sequence[pathlib.Path]) -> list[Mapping[str, Any]]:
    """The evaluations that lie in folders of run directories."""
    return [evaluations.read(path) for each in directories for path in sorted(each.glob(f'*/{evaluations.FILE}'))]


def _only_one(done: pd.DataFrame) -> tuple[str, str]:
    sets = done[['dataset', 'data_fingerprint']].astype(object).drop_duplicates()
    if len(sets) > 1:
        shown = ', '.join(f'{row.dataset} {row.data_fingerprint[:12]}' for row in sets.itertuples())
        raise UserError(f'{len(sets)} data sets ({shown}); a report is on one: leave the directories of others out.')
    return tuple(sets.iloc[0])


def _run_dir(path: pathlib.Path) -> RunDir:
    return RunDir(path, run_files.config(path), run_files.starts(path), run_files.data(path))


def _recipes(
    done: pd.DataFrame, predictions: pd.DataFrame, group_of: Mapping[str, int], known: Mapping[str, Mapping[str, Any]]
) -> list[Recipe]:
    scored = predictions.join(done[['seed', 'fold', 'recipe_id']], on='trial', how='inner')
    scored_by = dict(iter(scored.groupby('recipe_id', sort=False)))
    labels = settings.labels(done, known)
    found = []
    for recipe_id, trials in done.groupby('recipe_id', sort=False):
        mine = scored_by[recipe_id]
        pooled = comparison.pivot(mine)
        folds = mine.drop_duplicates('image_id').set_index('image_id').fold[pooled.image_ids].to_numpy(int)
        groups = recipes.number_groups(pooled.image_ids, group_of)
        of_recipe = (recipe_id, labels[recipe_id], _kind(trials.iloc[0]), trials, pooled, folds, groups)
        found.append(Recipe(*of_recipe, known.get(recipe_id, {})))
    return sorted(found, key=lambda each: -each.scores['accuracy'].mean)


_INPUTS = {each.name: each.inputs for each in classifiers.BASELINES}


def _kind(row: pd.Series) -> str:
    if row.model not in classifiers.METHODS:
        return 'network'
    inputs = _INPUTS.get(row.recipe.removesuffix(' equalised'))
    if inputs is None:
        return 'features'
    return 'shortcut' if inputs in classifiers.SHORTCUTS else 'baseline'


def _read_epochs(file: pathlib.Path, trials: pd.DataFrame) -> pd.DataFrame:
    columns, places = ', '.join(schema.EPOCH_COLUMNS), ', '.join('?' * len(trials))
    query = f'SELECT {columns} FROM epochs WHERE trial_id IN ({places}) ORDER BY rowid'
    with merge.reading(file) as database:
        rows = database.execute(query, list(trials.trial_id)).fetchall()
    found = pd.DataFrame(rows, columns=list(schema.EPOCH_COLUMNS))
    return found.merge(trials[['trial_id', 'seed', 'fold']], on='trial_id')


def crossing(recipe: Recipe) -> int:
    """Groups of look-alikes with images in more than one fold: 0 unless something is wrong."""
    return int((pd.Series(recipe.folds).groupby(recipe.groups).nunique() > 1).sum())


def find(recipes: Collection[Recipe], name: str) -> Recipe:
    """The recipe with this label, or whose id begins so. UserError: none, or several."""
    found = [each for each in recipes if each.label == name] or [
        each for each in recipes if each.recipe_id.startswith(name) or each.trials.recipe.iloc[0] == name
    ]
    if len(found) != 1:
        labels = '; '.join(each.label for each in (found or recipes))
        many = f'{len(found)} recipes' if found else 'no such recipe'
        raise UserError(f'--reference={name}: {many}; expected one of: {labels}.')
    return found[0]
