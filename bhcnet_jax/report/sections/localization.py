"""Where the networks look: how well their heat maps point at drawn bleedings, if that was measured."""

from bhcnet_jax.display.progress import counted
from bhcnet_jax.inference.localization import CENTRE, MAP, MEASURES, Judged, read, verdict
from bhcnet_jax.inference.saliency import NAMES
from bhcnet_jax.report.evidence import Evidence
from bhcnet_jax.report.page import Block, Note, Number, Section, Table
from bhcnet_jax.statistics.bootstrap import Estimate

TITLE = 'Where the networks look'
ABOUT = (
    'PHANTOM: the slices are drawn, with seeds that no network was trained on, so that the place of every bleeding is '
    'known. Pointing game: how often the largest value of a heat map lies in the bleeding. IoU: of the bleeding and as '
    'many pixels with the largest values of the map. The centre prior is one map for all slices, which falls with the '
    'distance from the middle; random weights are the same networks before any training. Intervals are 95 % intervals '
    'over slices, by the bootstrap.'
)


def localization(evidence: Evidence) -> list[Section]:
    """Shows what `python -m bhcnet_jax.explain` left in the run directories; [] if that is nothing."""
    found = [judged for each in evidence.run_dirs for judged in read(each.path)]
    blocks: list[Block] = []
    for place, judged in enumerate(found, 1):
        blocks.append(_table(judged, f'localization-{place}', '' if evidence.mark else 'PHANTOM: '))
        blocks.append(' '.join(verdict(judged)))
    return [Section(TITLE, [*blocks, Note(ABOUT)])] if found else []


def _table(judged: Judged, name: str, mark: str) -> Table:
    caption = (
        f'{mark}{NAMES.get(judged.how, judged.how)} of {judged.recipe} ({counted(len(judged.trials), "network")} '
        f'trained on {judged.trained_on}) on drawn bleedings; {100 * judged.called:.1f} % of them are called positive'
    )
    names = {MAP: 'trained networks', CENTRE: 'centre prior, no network'}
    rows = [
        [names.get(whose, whose), *(_number(scores[measure], judged.slices, measure) for measure in MEASURES)]
        for whose, scores in judged.scores.items()
    ]
    return Table(name, caption, ('heat map', *MEASURES), rows)


def _number(estimate: Estimate, slices: int, measure: str) -> Number:
    style = 'plain' if measure == 'IoU' else 'percent'
    return Number(estimate.mean, estimate.low, estimate.high, slices, style)
