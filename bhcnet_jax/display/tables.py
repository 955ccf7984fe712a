"""What a run prints: its model layer by layer, and at the end its result beside the paper's."""

import math
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bhcnet_jax.paper.bhcnet import PaperRow

PER_CENT = ('accuracy', 'precision', 'sensitivity', 'specificity', 'f1')  # in the paper's tables too
SCORES = ('auc', 'log_loss', 'brier')  # of the probabilities; the paper prints none of them
NAMES = {'f1': 'F1', 'auc': 'AUC', 'log_loss': 'log-loss (nats)', 'brier': 'Brier score'}


def print_model_table(
    rows: Iterable[tuple[str, tuple[int, ...], int]], console: Console | None = None
) -> None:
    """Prints one line per layer and the total.

    rows: (layer name, output shape, number of parameters). console: standard output unless given.
    """
    rows = list(rows)
    table = Table(title='Model', title_justify='left', box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column('layer', footer='total', overflow='fold')
    table.add_column('output shape', overflow='fold')
    table.add_column('parameters', footer=f'{sum(count for _, _, count in rows):,}', justify='right')
    for name, shape, count in rows:
        table.add_row(name, ' x '.join(map(str, shape)), f'{count:,}')
    (console or Console()).print(table)


def print_result(
    result: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    paper_row: PaperRow | None,
    synthetic: bool,
    classes: tuple[str, str],
    title: str = 'Test part',
    console: Console | None = None,
) -> None:
    """Prints the confusion matrix and the metrics beside the paper's row for the same recipe, if there is one.

    result: tp, tn, fp, fn (images), accuracy, precision, sensitivity, specificity, f1, auc, brier (in [0, 1])
      and log_loss; nan where undefined.
    intervals: metric name -> (low, high) in the metric's unit, for those metrics that have one.
    paper_row: see `bhcnet.row_for`; None leaves the paper out.
    synthetic: marks the tables PHANTOM and the paper's column as one of real images.
    classes: names of the negative and of the positive class.
    """
    console = console or Console()
    mark = 'PHANTOM (synthetic images): ' if synthetic else ''
    counts = {name: int(result[name]) for name in ('tp', 'tn', 'fp', 'fn')}
    console.print(_confusion_matrix(counts, classes, mark + title))
    console.print(_metrics(result, intervals, counts, paper_row, mark + title, synthetic))
    if paper_row:
        console.print(_source(paper_row), highlight=False, markup=False)


def _confusion_matrix(counts: Mapping[str, int], classes: tuple[str, str], title: str) -> Table:
    negative, positive = map(Text, classes)  # names are data: square brackets in them are shown
    table = Table(title=f'{title}: confusion matrix', title_justify='left', box=box.SIMPLE_HEAD)
    table.add_column('actual', overflow='fold')
    table.add_column(Text.assemble('predicted ', positive), justify='right', overflow='fold')
    table.add_column(Text.assemble('predicted ', negative), justify='right', overflow='fold')
    table.add_row(positive, f'TP {counts["tp"]}', f'FN {counts["fn"]}')
    table.add_row(negative, f'FP {counts["fp"]}', f'TN {counts["tn"]}')
    return table


def _metrics(
    result: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    counts: Mapping[str, int],
    paper_row: PaperRow | None,
    title: str,
    synthetic: bool,
) -> Table:
    table = Table(title=f'{title}: metrics', title_justify='left', box=box.SIMPLE_HEAD)
    table.add_column('metric', no_wrap=True)
    table.add_column('this run', justify='right', no_wrap=True)
    table.add_column('95 % interval', justify='right', overflow='fold')
    table.add_column('n', justify='right', overflow='fold')
    if paper_row:
        table.add_column('paper (real images)' if synthetic else 'paper', justify='right', overflow='fold')
    for name in PER_CENT + SCORES:
        percent = name in PER_CENT
        value, interval = result[name], intervals.get(name, (math.nan, math.nan))
        printed = getattr(paper_row, name, None)
        table.add_row(
            NAMES.get(name, name),
            _number(value, percent),
            '-' if math.isnan(value) or math.isnan(interval[0]) else _span(interval, percent),
            str(_images(name, counts)),
            *(['-' if printed is None else f'{printed} %'] if paper_row else []),
        )
    return table


def _images(name: str, counts: Mapping[str, int]) -> int:
    """How many test images stand in the denominator of a metric."""
    parts = {'precision': ('tp', 'fp'), 'sensitivity': ('tp', 'fn'), 'specificity': ('tn', 'fp')}
    return sum(counts[part] for part in parts.get(name, ('tp', 'tn', 'fp', 'fn')))


def _number(value: float, percent: bool) -> str:
    if math.isnan(value):
        return 'undefined'
    return f'{100 * value:.1f} %' if percent else f'{value:.3f}'


def _span(interval: tuple[float, float], percent: bool) -> str:
    low, high = interval
    return f'{100 * low:.1f} to {100 * high:.1f} %' if percent else f'{low:.3f} to {high:.3f}'


def _source(row: PaperRow) -> str:
    lines = [f'Paper: {row.place}, as printed, from 20 test images.']  # 10 and 10, section IV.C
    if row.tp is not None:
        lines.append(f'Its counts: TP {row.tp}, TN {row.tn}, FP {row.fp}, FN {row.fn}.')
    if row.epochs is None:
        lines.append('It prints neither counts nor epochs.')
    if row.remark:
        lines.append(f'{row.remark[0].upper()}{row.remark[1:]}.')
    return ' '.join(lines)
