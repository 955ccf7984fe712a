"""The report's figures as SVG that stands in a page: its text is text, its colours are those of the page.

Every function returns a Figure of `page.py`. mark: drawn into the figure, '' for real images.
"""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from sklearn.isotonic import isotonic_regression

from bhcnet_jax.report.bands import BINS, Curve
from bhcnet_jax.report.page import Figure, Number

# Stand for the page's colours, which differ in the light and in the dark: see --ink ... of page.html.j2.
INK, SOFT, LINE = '#010101', '#020202', '#030303'
COLOURS = ('#010000', '#000100', '#000001', '#010100')
LINES = ('-', '--', '-.', ':')
MARKERS = 'os^vD'
_VARIABLES = {INK: 'ink', SOFT: 'soft', LINE: 'line', **{each: f'c{place}' for place, each in enumerate(COLOURS)}}
LABEL_HEIGHT = 0.05  # of a small label, as a share of the height of the axes
SIZE = (4.6, 3.5)  # inches: on a phone its text is as large as the page's notes
STYLE = {
    'svg.fonttype': 'none',
    'font.family': 'DejaVu Sans',
    'font.size': 9,
    'text.color': INK,
    'axes.edgecolor': SOFT,
    'axes.labelcolor': INK,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': LINE,
    'legend.frameon': False,
    'lines.linewidth': 1.5,
}


def draw(
    name: str, caption: str, mark: str, paint: Callable[[Axes], None], size: tuple[float, float] = SIZE
) -> Figure:
    """A figure with one pair of axes, on which `paint` draws."""
    with matplotlib.rc_context({**STYLE, 'svg.hashsalt': name}):
        canvas = Canvas(size, layout='constrained')
        canvas.patch.set_alpha(0)
        axes = canvas.subplots()
        axes.patch.set_alpha(0)
        paint(axes)
        if mark:
            canvas.suptitle(mark, fontsize=10, fontweight='bold')
        written = io.StringIO()
        canvas.savefig(written, format='svg', metadata={'Date': None})
    return Figure(name, caption, _inline(written.getvalue(), f'{mark}. {caption}' if mark else caption))


def _inline(svg: str, label: str) -> str:
    """The <svg> alone, without size, so that the page gives it one, and in the page's colours."""
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg'):], flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = f'<svg {box} role="img" aria-label="{_escape(label)}">{svg[svg.index(">") + 1:]}'
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)  # the same in every figure, and nothing refers to them
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f'var(--{variable})')
    return svg.replace('xlink:href', 'href')


def _escape(text: str) -> str:
    return text.replace('&', '&amp;').replace('"', '&quot;').replace('<', '&lt;')


def lines(
    name: str,
    caption: str,
    mark: str,
    curves: Mapping[str, Curve],
    labels: tuple[str, str],
    straight: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    **limits: tuple[float, float],
) -> Figure:
    """Curves with their bands, and thin lines to compare them with. labels: of x and y; limits: xlim, ylim."""

    def paint(axes: Axes) -> None:
        for place, (label, curve) in enumerate(curves.items()):
            style = {'color': COLOURS[place % 4], 'linestyle': LINES[place % 4]}
            axes.plot(curve.x, curve.y, label=_short(label), **style)
            axes.fill_between(curve.x, curve.low, curve.high, color=style['color'], alpha=0.15, linewidth=0)
        for place, (label, (x, y)) in enumerate(straight.items()):
            axes.plot(x, y, color=SOFT, linewidth=0.9, linestyle=(':', '--')[place % 2], label=label)
        axes.set(xlabel=labels[0], ylabel=labels[1], **limits)
        axes.grid(linewidth=0.6)
        _legend(axes)

    return draw(name, caption, mark, paint)


def _short(label: str, most: int = 44) -> str:
    label = label.replace('$', r'\$')
    return label if len(label) <= most else f'{label[: most - 1]}\N{HORIZONTAL ELLIPSIS}'


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc='outside lower center', ncols=1, fontsize=8)


def reliability(name: str, caption: str, mark: str, curve: Curve, n: np.ndarray, positive: str) -> Figure:
    """Points with their intervals, as large as their bins are full. positive: how that class is called."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=':')
        there = ~np.isnan(curve.y)
        x, y = curve.x[there], curve.y[there]
        axes.vlines(x, curve.low[there], curve.high[there], color=COLOURS[0], linewidth=1)
        axes.scatter(x, y, 12 + 3 * n[there], color=COLOURS[0], zorder=3, clip_on=False)
        for place, (at, images) in enumerate(zip(x, n[there], strict=True)):
            axes.text(at, -0.085 if place % 2 else -0.04, f'{images:.0f}', ha='center', fontsize=7.5, color=SOFT)
        axes.set(xlabel='predicted probability, mean of the bin', ylabel=f'share of {positive}')
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.12, 1.03))
        axes.grid(linewidth=0.6)

    return draw(name, caption, mark, paint)


def sensitivity(
    name: str, caption: str, mark: str, rows: Mapping[str, Sequence[tuple[float, Number]]], label: str
) -> Figure:
    """Shares by what they depend on, on a logarithmic axis; rows: of each model, the middle of a bin and its share."""

    def paint(axes: Axes) -> None:
        _series(axes, rows)
        axes.set(xlabel=label, ylabel='sensitivity', ylim=(-0.02, 1.03), xscale='log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter('{x:g}')
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(linewidth=0.6)
        _legend(axes)

    return draw(name, caption, mark, paint)


def amounts(
    name: str, caption: str, mark: str, rows: Mapping[str, Sequence[tuple[int, Number]]], label: str
) -> Figure:
    """AUC by how much there was of something, on a logarithmic axis that begins with 0; rows: of each line."""
    counts = sorted({count for points in rows.values() for count, _ in points})
    least = next(count for count in counts if count)

    def paint(axes: Axes) -> None:
        _series(axes, rows)
        axes.set_xscale('symlog', linthresh=least, linscale=0.5)
        axes.set(xlabel=label, ylabel='AUC')
        axes.set_xticks(counts, [f'{count:,}' for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(linewidth=0.6)
        _legend(axes)

    return draw(name, caption, mark, paint)


def _series(axes: Axes, rows: Mapping[str, Sequence[tuple[float, Number]]]) -> None:
    """A line for each row, its points with their intervals, moved a little apart."""
    for place, (label, points) in enumerate(rows.items()):
        colour, line, marker = COLOURS[place % 4], LINES[place % 4], MARKERS[place % 4]
        x = [at * 1.03 ** (place - (len(rows) - 1) / 2) for at, _ in points]
        y = [number.value for _, number in points]
        axes.vlines(x, *zip(*((each.low, each.high) for _, each in points), strict=True), color=colour, linewidth=1)
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4, label=_short(label))


def histogram(
    name: str, caption: str, mark: str, labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, str]
) -> Figure:
    """Probabilities of both classes. labels: bool [N]. probabilities: float [S, N]; heights are means over seeds.

    classes: how the negative and the positive one are called.
    """

    def paint(axes: Axes) -> None:
        edges = np.linspace(0, 1, 2 * BINS + 1)
        for place, (label, mine) in enumerate(zip(classes, (~labels, labels), strict=True)):
            counts, _ = np.histogram(probabilities[:, mine], edges)
            style = {'color': COLOURS[place], 'linestyle': LINES[place], 'linewidth': 1.5}
            axes.stairs(counts / len(probabilities), edges, label=f'{label} (n = {mine.sum()})', **style)
            axes.stairs(counts / len(probabilities), edges, fill=True, color=COLOURS[place], alpha=0.15)
        axes.axvline(0.5, color=SOFT, linewidth=0.9, linestyle=':')
        axes.set(xlabel=f'predicted probability of {classes[1]}', ylabel='images', xlim=(0, 1))
        _legend(axes)

    return draw(name, caption, mark, paint)


def learning(name: str, caption: str, mark: str, epochs: pd.DataFrame, columns: Mapping[str, str], unit: str) -> Figure:
    """Means over trials, with the middle 80 % of them. columns: of epochs -> label."""
    factor = 100 if unit.startswith('accuracy') else 1

    def paint(axes: Axes) -> None:
        for place, (column, label) in enumerate(columns.items()):
            by_step = factor * epochs.groupby('step')[column].quantile([0.1, 0.9]).unstack()
            mean = factor * epochs.groupby('step')[column].mean()
            style = {'color': COLOURS[place], 'linestyle': LINES[place]}
            axes.plot(mean.index, mean, label=label, marker=MARKERS[place], markersize=3, **style)
            axes.fill_between(by_step.index, by_step[0.1], by_step[0.9], color=COLOURS[place], alpha=0.15, linewidth=0)
        _phases(axes, epochs)
        axes.set(xlabel='epoch', ylabel=unit)
        _legend(axes)

    return draw(name, caption, mark, paint)


def by_part(name: str, caption: str, mark: str, epochs: pd.DataFrame, part: str) -> Figure:
    """Test accuracy over epochs, a thin line for each fold or seed. part: 'fold' or 'seed'."""

    def paint(axes: Axes) -> None:
        table = 100 * epochs.groupby(['step', part]).test_accuracy.mean().unstack()
        for column in table:
            axes.plot(table.index, table[column], color=COLOURS[0], linewidth=0.9, alpha=0.55, marker='o', markersize=2)
        endings = dict(iter(table.iloc[-1].groupby(table.iloc[-1].round(1))))
        heights = apart(np.array([*endings]), LABEL_HEIGHT * np.ptp(axes.get_ylim()))
        for height, ending in zip(heights, endings.values(), strict=True):
            names = ', '.join(map(str, ending.index)) if len(ending) < 4 else f'{len(ending)} {part}s'
            beside = {'xytext': (6, 0), 'textcoords': 'offset points', 'va': 'center'}  # SVG drops leading blanks
            axes.annotate(names, (table.index[-1], height), fontsize=7.5, color=SOFT, **beside)
        mean = {'color': COLOURS[1], 'linewidth': 2, 'label': f'mean over {part}s, {table.shape[1]}'}
        axes.plot(table.index, table.mean(axis=1), **mean)
        _phases(axes, epochs)
        axes.set(xlabel='epoch', ylabel=f'accuracy of each {part}, % of test images')
        _legend(axes)

    return draw(name, caption, mark, paint)


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending heights, moved as little as leaves that gap between each two (least squares)."""
    steps = gap * np.arange(len(heights))
    return isotonic_regression(heights - steps) + steps


def _phases(axes: Axes, epochs: pd.DataFrame) -> None:
    axes.set_xlim(epochs.step.min() - 0.5, epochs.step.max() + 0.5)  # also those without a score
    starts = epochs[epochs.epoch == 1].groupby('phase', sort=False).step.min()
    for phase, step in starts.items():
        if step > 1:
            axes.axvline(step - 0.5, color=SOFT, linewidth=0.8, linestyle=':')
        axes.text(step, 1.02, phase, color=SOFT, fontsize=8, transform=axes.get_xaxis_transform())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y', linewidth=0.6)


def dots(name: str, caption: str, mark: str, rows: Mapping[str, Number], unit: str, line: float = 0.0) -> Figure:
    """A dot with its interval for each row, and its value. line: a share, where a dotted one is drawn."""

    def paint(axes: Axes) -> None:
        _rows(axes, list(rows.items()), [(COLOURS[0], MARKERS[0])] * len(rows), line)
        axes.set(xlabel=unit)

    return draw(name, caption, mark, paint, _tall(len(rows)))


def accuracies(
    name: str,
    caption: str,
    mark: str,
    rows: Sequence[tuple[str, Number, str]],
    kinds: Sequence[str],
    chance: float,
) -> Figure:
    """The accuracy of each row, (label, accuracy, kind), with its interval. kinds: five, each with its own marker."""
    styles = dict(zip(kinds, zip((*COLOURS, INK), MARKERS, strict=True), strict=True))

    def paint(axes: Axes) -> None:
        _rows(axes, [row[:2] for row in rows], [styles[kind] for *_, kind in rows], chance)
        for kind in (each for each in kinds if any(each == kind for *_, kind in rows)):
            axes.plot([], [], styles[kind][1], color=styles[kind][0], markersize=5, label=kind)
        axes.set(xlabel='accuracy, %')
        axes.figure.legend(loc='outside lower center', ncols=2, fontsize=8)

    return draw(name, caption, mark, paint, _tall(len(rows) + 2))


def _tall(rows: int) -> tuple[float, float]:
    return SIZE[0], 1.0 + 0.28 * rows


def _rows(axes: Axes, rows: Sequence[tuple[str, Number]], styles: Sequence[tuple[str, str]], line: float) -> None:
    """Dots, intervals and values in per cent, from the top. styles: colour and marker of each."""
    places = np.arange(len(rows))[::-1]
    for place, (_, number), (colour, marker) in zip(places, rows, styles, strict=True):
        axes.plot([100 * number.low, 100 * number.high], [place, place], color=colour)
        axes.plot(100 * number.value, place, marker, color=colour, markersize=5)
        value = {'transform': axes.get_yaxis_transform(), 'ha': 'right', 'va': 'center', 'fontsize': 8}
        axes.text(1.15, place, number.bare, color=INK, **value)
    axes.axvline(100 * line, color=SOFT, linewidth=0.9, linestyle=':')
    axes.set_yticks(places, [_on_two_lines(label) for label, _ in rows], color=INK, fontsize=8, linespacing=1)
    axes.set(ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis='x', linewidth=0.6)
    axes.tick_params(axis='y', length=0)


def _on_two_lines(label: str, most: int = 30) -> str:
    """Lines of at most so many characters, of about one length."""
    label = _short(label, 2 * most - 4).replace(' x ', '\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}')
    return label if len(label) <= most else '\n'.join(textwrap.wrap(label, len(label) // 2 + 4))


def sizes(name: str, caption: str, mark: str, rows: Sequence[tuple[str, int, Number]]) -> Figure:
    """The accuracy of each row, (label, parameters, accuracy), over its parameters on a logarithmic axis."""

    def paint(axes: Axes) -> None:
        rising = sorted(rows, key=lambda row: row[2].value)
        for _, parameters, number in rising:
            axes.plot([parameters] * 2, [100 * number.low, 100 * number.high], color=COLOURS[0], alpha=0.5)
            axes.plot(parameters, 100 * number.value, MARKERS[0], color=COLOURS[0], markersize=4)
        axes.set(xscale='log', xlabel='parameters', ylabel='accuracy, %')
        axes.grid(linewidth=0.6)
        values = np.array([100 * number.value for *_, number in rising])
        beside = {'textcoords': axes.get_yaxis_transform(), 'va': 'center', 'fontsize': 7.5, 'color': INK}
        line = {'arrowstyle': '-', 'color': SOFT, 'linewidth': 0.4, 'relpos': (0, 0.5), 'shrinkA': 1, 'shrinkB': 3}
        heights = apart(values, LABEL_HEIGHT * np.ptp(axes.get_ylim()))
        for (label, parameters, _), value, height in zip(rising, values, heights, strict=True):
            axes.annotate(_short(label), (parameters, value), (1.04, height), arrowprops=line, **beside)

    return draw(name, caption, mark, paint, (1.6 * SIZE[0], SIZE[1]))


def specification(
    name: str,
    caption: str,
    mark: str,
    accuracies: Sequence[Number],
    choices: Mapping[str, np.ndarray],
    line: float | None,
) -> Figure:
    """Accuracies from the least to the largest with their intervals, and below each the choices behind it.

    choices: in the order of accuracies, bool [R] for each. line: a share, where a dotted one is drawn.
    """
    order = np.argsort([each.value for each in accuracies], kind='stable')
    names, rows = list(choices), np.arange(len(choices))[::-1]
    height = 0.13 * len(rows)

    def paint(whole: Axes) -> None:
        whole.set_axis_off()
        axes, below = whole.figure.subplots(2, sharex=True, height_ratios=(SIZE[1], height))
        axes.patch.set_alpha(0)
        value, low, high = (
            100 * np.array([getattr(accuracies[place], end) for place in order]) for end in ('value', 'low', 'high')
        )
        places = np.arange(len(order))
        axes.vlines(places, low, high, color=COLOURS[0], alpha=0.3, linewidth=1)
        axes.plot(places, value, '.', color=COLOURS[0], markersize=3)
        if line is not None:
            axes.axhline(100 * line, color=SOFT, linewidth=0.9, linestyle=':')
        axes.set(ylabel='accuracy, %', xticks=[], xlim=(-1, len(order)))
        axes.grid(axis='y', linewidth=0.6)
        for row, name in zip(rows, names, strict=True):
            mine = places[choices[name][order]]
            below.plot(mine, np.full(len(mine), row), '|', color=INK, markersize=5, markeredgewidth=0.8)
        below.set_yticks(rows, [_short(name) for name in names], fontsize=7, color=INK)
        below.set(ylim=(-0.6, len(rows) - 0.4), xticks=[])
        below.patch.set_alpha(0)
        below.spines[:].set_visible(False)
        below.tick_params(length=0)

    return draw(name, caption, mark, paint, (1.6 * SIZE[0], SIZE[1] + height))


def parallel(name: str, caption: str, mark: str, values: pd.DataFrame, accuracy: np.ndarray) -> Figure:
    """A line per recipe across an axis per key, the last of them its accuracy. values: numbers, a column per key."""

    def paint(axes: Axes) -> None:
        table = values.assign(**{'accuracy, %': 100 * accuracy})
        heights = pd.DataFrame({key: _scaled(table[key].to_numpy(float)) for key in table})
        best = np.argmax(accuracy)
        for place, row in enumerate(heights.to_numpy()):
            style = {'color': COLOURS[1], 'linewidth': 2.2, 'zorder': 3} if place == best else {'color': COLOURS[0]}
            axes.plot(range(len(row)), row, **{'alpha': 1 if place == best else 0.35, 'linewidth': 1, **style})
        for place, key in enumerate(table):
            axes.vlines(place, 0, 1, color=SOFT, linewidth=0.8)
            for height, end in ((-0.06, table[key].min()), (1.03, table[key].max())):
                axes.text(place, height, f'{end:.4g}', ha='center', fontsize=8, va='bottom' if height > 1 else 'center')
        axes.set_xticks(range(table.shape[1]), [key.replace('.', '\n') for key in table], fontsize=7.5, color=INK)
        axes.set(yticks=[], ylim=(-0.12, 1.12))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return draw(name, caption, mark, paint, (max(SIZE[0], 1.1 * values.shape[1] + 1.5), SIZE[1]))


def _scaled(values: np.ndarray) -> np.ndarray:
    """To 0 ... 1, on a logarithmic scale where the largest is more than 20 times the smallest."""
    if values.min() > 0 and values.max() > 20 * values.min():
        values = np.log(values)
    width = np.ptp(values)
    return (values - values.min()) / width if width else np.full(len(values), 0.5)
