"""How hard a bleeding may be to see: detection of drawn bleedings against their difficulty, if that was measured."""

import math
from collections.abc import Mapping, Sequence

from bhcnet_jax.display.progress import counted
from bhcnet_jax.inference.difficulty import DISTRACTORS, Bin, Found, Overlap, Rate, read
from bhcnet_jax.report import plots
from bhcnet_jax.report.evidence import Evidence
from bhcnet_jax.report.page import Block, Cell, Note, Number, Section, Table

TITLE = 'How hard a bleeding may be to see'
CONTRAST, AREA = 'contrast to noise of the blood', 'visible area of the blood, mm\N{SUPERSCRIPT TWO}'
ABOUT = (
    'PHANTOM: the heads are drawn, from random numbers that no training has, so that all is known of them. Contrast '
    'to noise: mean difference in HU of the blood to what it replaces, of either sign, in standard deviations of the '
    'noise of a pixel. Each point is of as many bleedings. A head counts for a distractor if it has it, be it at the '
    'height of the slice or at another; most heads have several. Dice: twice the pixels that the outline of the mask '
    'head and the blood have in common, over those of both. Intervals are 95 % intervals: of shares by Wilson, of Dice '
    'by the bootstrap over heads.'
)


def difficulty(evidence: Evidence) -> list[Section]:
    """Shows what `python -m bhcnet_jax.difficulty` left in the run directories; [] if that is nothing."""
    every = [found for each in evidence.run_dirs if (found := read(each.path))]
    if not every:
        return []
    mark = evidence.mark or 'PHANTOM'
    names = [f'{each.recipe}, {counted(len(each.trials), "network")}' for each in every]
    labels = {
        name if names.count(name) == 1 else f'{name} ({place})': each
        for place, (name, each) in enumerate(zip(names, every, strict=True), 1)
    }  # fmt: skip
    blocks: list[Block] = [_told(each) for each in every]
    for name, label in (('contrast', CONTRAST), ('area', AREA)):
        points = {whose: _points(getattr(found, name)) for whose, found in labels.items()}
        caption = f'Sensitivity by the {label.partition(",")[0]}, on drawn heads'
        blocks.append(plots.sensitivity(f'difficulty-{name}', caption, mark, points, label))
    for place, found in enumerate(every, 1):
        blocks += _tables(found, place, '' if evidence.mark else 'PHANTOM: ')
    return [Section(TITLE, [*blocks, Note(ABOUT)])]


def _told(found: Found) -> str:
    return (
        f'{found.recipe}, {counted(len(found.trials), "network")} trained on {found.trained_on}, on {found.heads} '
        f'drawn heads, called positive from {found.decided}: sensitivity {_number(found.sensitivity)}, specificity '
        f'{_number(found.specificity["all"])}.'
    )


def _number(rate: Rate) -> Number:
    return Number(rate.value, *rate.interval, rate.n)


def _points(bins: Sequence[Bin]) -> list[tuple[float, Number]]:
    return [(each.middle, _number(each.rate)) for each in bins]


def _tables(found: Found, place: int, mark: str) -> list[Block]:
    of = f'{mark}{found.recipe} on drawn heads'
    bins = [
        [f'{label} {each.low:.3g} to {each.high:.3g}', _number(each.rate)]
        for label, part in (('contrast', found.contrast), ('mm\N{SUPERSCRIPT TWO}', found.area)) for each in part
    ]  # fmt: skip
    tables: list[Block] = [
        Table(f'difficulty-bins-{place}', f'{of}: sensitivity by difficulty', ('bleedings', 'sensitivity'), bins),
        Table(f'difficulty-kinds-{place}', f'{of}: by kind of bleeding', *_kinds(found)),
        Table(
            f'difficulty-distractors-{place}', f'{of}: heads without blood, by what they show', ('with', 'specificity'),
            _rows(found.specificity), longest=20,
        ),
    ]  # fmt: skip
    if found.contoured is not None:
        tables.append(f'Heads without blood and without any outline of the mask head: {_number(found.contoured)}.')
    return tables


def _rows(rates: Mapping[str, Rate]) -> list[list[Cell]]:
    return [[DISTRACTORS.get(name, name), _number(rate)] for name, rate in rates.items()]


def _kinds(found: Found) -> tuple[Sequence[str], list[list[Cell]]]:
    """Heads and rows: sensitivity, and Dice where there is a mask head."""
    rates = {'all': found.sensitivity, **found.kinds}
    if not found.dice:
        return ('kind', 'sensitivity'), [[name, _number(rate)] for name, rate in rates.items()]
    rows = [[name, _number(rate), _overlap(found.dice.get(name))] for name, rate in rates.items()]
    return ('kind', 'sensitivity', 'Dice of the mask head'), rows


def _overlap(each: Overlap | None) -> Cell:
    if each is None:
        return '-'
    ends = (math.nan if end is None else end for end in (each.low, each.high))
    return Number(each.mean, *ends, each.n, 'plain')
