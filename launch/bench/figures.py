"""Figures of what `benchmark.py` has measured. Bars are medians, whiskers go from the slowest round to the fastest."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from growth import GROWTH, USUAL
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bhcnet_jax.display.figures import BLUE, GREY, STYLE, WIDTH


def _bars(axes: Axes, names: Sequence[str], rates: Sequence[Mapping[str, float]], colours: Sequence[str]) -> None:
    medians = [rate['median'] for rate in rates]
    low = [rate['median'] - rate['min'] for rate in rates]
    high = [rate['max'] - rate['median'] for rate in rates]
    bars = axes.barh(names, medians, color=colours, height=0.65, xerr=[low, high], ecolor='black', capsize=3)
    axes.bar_label(bars, [f'{median:.0f}' for median in medians], padding=4)
    axes.set(xlabel='images/s', xlim=(0, 1.25 * max(rate['max'] for rate in rates)))
    axes.invert_yaxis()
    axes.tick_params(left=False)


@matplotlib.rc_context(STYLE)
def contenders(measured: Mapping[str, Any], path: str) -> None:
    """Images/s of all contenders; measured: of `contest.measure_cpu`, with hardware."""
    table = measured['contenders']
    figure = Figure((WIDTH, 0.8 + 0.38 * len(table)), layout='constrained')
    axes = figure.subplots()
    colours = [BLUE if name.startswith('bhcnet_jax') else GREY for name in table]
    names = [f'{name}\n{_way(each["variant"])}'.strip() for name, each in table.items()]
    _bars(axes, names, [each['images_per_second'] for each in table.values()], colours)
    axes.set_title(f"Training the paper's CNN: {measured['hardware']}", loc='left')
    figure.savefig(path)


def _way(variant: Mapping[str, Any]) -> str:
    """What makes a variant, in words, without its dtype."""
    ways = {'compile': 'torch.compile', 'channels_last': 'channels_last'}
    words = [word for key, word in ways.items() if variant.get(key)]
    if 'backend' in variant:
        words = [f'on {variant["backend"]}', f'jit_compile={variant["jit_compile"]}']
    elif 'compile' in variant and not variant['compile']:
        words = ['eager', *words]
    return ', '.join(words)


@matplotlib.rc_context(STYLE)
def growth(measured: Mapping[str, Any], path: str) -> None:
    """Images/s by image size, batch size and lanes; measured: of `growth.measure_growth`, with hardware."""
    figure = Figure((WIDTH, 2.4), layout='constrained')
    for axes, (what, sizes) in zip(figure.subplots(1, len(GROWTH)), GROWTH.items(), strict=True):
        rates = [
            next(each['images_per_second'] for each in measured['points'] if _size(each) == USUAL | {what: size})
            for size in sizes
        ]
        _bars(axes, list(map(str, sizes)), rates, [BLUE] * len(sizes))
        axes.set_ylabel(what)
    figure.suptitle(measured['hardware'], fontsize=STYLE['axes.titlesize'])
    figure.savefig(path)


def _size(point: Mapping[str, Any]) -> dict[str, int]:
    return {what: point[what] for what in USUAL}
