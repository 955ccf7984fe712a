"""What models of these recipes do on images from elsewhere, beside what they do out of fold."""

from collections.abc import Mapping, Sequence
from typing import Any

from bhcnet_jax.report.evidence import STYLES, Evidence, Recipe
from bhcnet_jax.report.page import Block, Cell, Number, Section, Table

METRICS = {'AUC': 'auc', 'sensitivity': 'sensitivity', 'specificity': 'specificity', 'Brier score': 'brier'}
NOTE = (
    'Out of fold: single networks at the threshold 0.5, each on images of the training set that it was not trained on. '
    'Elsewhere: the model as it is used, calibrated if the training set allowed it, at its frozen operating point. '
    'Intervals are 95 % intervals by a bootstrap of groups. A group is positive if one of its images is.'
)


def elsewhere(evidence: Evidence) -> Section:
    """Shows every evaluation: all images, groups, what was answered, and the kinds of images."""
    used = {trial_id for each in evidence.elsewhere for trial_id in each['model']['trials']}
    rows = [_out_of_fold(each, evidence) for each in evidence.recipes if used & {*each.trials.trial_id}]
    rows += [
        [f'{each["model"]["name"]} on {each["data"]["dataset"]}: {row["of"]}', *_cells(row, METRICS.values())]
        for each in evidence.elsewhere for row in each['results']
    ]  # fmt: skip
    blocks: list[Block] = [_told(each) for each in evidence.elsewhere]
    blocks.append(Table('elsewhere', 'Out of fold and elsewhere', ('what', *METRICS), rows, NOTE))
    for place, each in enumerate(evidence.elsewhere, 1):
        blocks += [_worth(place, each), *_kinds(place, each)]
    return Section('On other images', blocks)


def _told(found: Mapping[str, Any]) -> str:
    data, model = found['data'], found['model']
    whole = found['results'][0]
    left_out = f' {data["left_out"]} training images were left out.' if data['left_out'] else ''
    abstained = ', '.join(f'{count} {why}' for why, count in found['abstained'].items())
    calibrated = f'operating point {model["operating_point"]}' if model['calibrated'] else 'not calibrated'
    return (
        f'{model["name"]}, {len(model["trials"])} networks trained on {model["trained_on"]}, on {data["dataset"]}: '
        f'{whole["n"]} images, {whole["positives"]} positive, {data["groups"]} groups.{left_out} Threshold '
        f'{model["threshold"]:.3f}, {calibrated}. Abstained: {abstained or "never"}. '
        f'Times that these images were looked at: {found["looks"]}. `{found["command"]}`'
    )


def _out_of_fold(recipe: Recipe, evidence: Evidence) -> list[Cell]:
    return [f'{recipe.label} on {evidence.dataset}, out of fold', *map(recipe.number, METRICS.values())]


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[Cell]:
    return [as_number(row['metrics'].get(name), name) for name in names]


def as_number(metric: Mapping[str, Any] | None, name: str) -> Cell:
    """A metric of an evaluation as a cell of a table."""
    if metric is None or metric['value'] is None:
        return '-'
    ends = (float('nan') if metric[end] is None else metric[end] for end in ('low', 'high'))
    return Number(metric['value'], *ends, metric['n'], {**STYLES, 'intercept': 'signed'}.get(name, _style(name)))


def _style(name: str) -> str:
    return 'plain' if name == 'slope' or name.startswith('net benefit') else 'percent'


def _worth(place: int, found: Mapping[str, Any]) -> Table:
    """Calibration and net benefit."""
    rows = [row for row in found['results'] if row['metrics']]
    names = [name for name in rows[0]['metrics'] if name in ('intercept', 'slope') or name.startswith('net benefit')]
    note = 'Intercept 0 and slope 1 are perfect. Net benefit: true positives per image, less false ones at those odds.'
    caption = f'Calibration and net benefit on {found["data"]["dataset"]}'
    cells = [[row['of'], *_cells(row, names)] for row in rows]
    return Table(f'elsewhere-worth-{place}', caption, ('what', *names), cells, note)


def _kinds(place: int, found: Mapping[str, Any]) -> list[Block]:
    if not found['subgroups']:
        return []
    names = ('auc', 'sensitivity', 'specificity')
    rows = [[row['of'], *_cells(row, names)] for row in found['subgroups']]
    caption = f'Kinds of images of {found["data"]["dataset"]}, by the columns of its csv'
    note = 'They were not chosen beforehand, and their intervals are not adjusted for their number.'
    return [Table(f'elsewhere-kinds-{place}', caption, ('images', 'AUC', 'sensitivity', 'specificity'), rows, note)]
