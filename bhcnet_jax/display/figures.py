"""The figures that a run writes, each as one PNG, after those of BHCNet (Anjum and Oberoi, 2022).

N images, H W pixels, F filters. Label 1 is the positive class; `classes` names the negative and the positive one.
Every function takes `mark`: '' for real images, otherwise words such as 'PHANTOM: synthetic images', which are drawn
above the figure and put into the PNG's metadata. Classes and parts differ in shape or line as well as in colour, so
that every figure can be read in black and white.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from scipy import ndimage

from bhcnet_jax import files

PathLike = str | os.PathLike[str]

# Okabe and Ito (2008): distinct for readers with any common colour vision.
BLUE, VERMILLION, GREY = '#0072B2', '#D55E00', '#666666'
CLASS_COLOURS = {0: BLUE, 1: VERMILLION}
WIDTH = 7.2  # inches, a full text column
MAX_PREDICTIONS = 40
MAX_FILTERS = 64
STYLE = {
    'font.family': 'DejaVu Sans',  # ships with matplotlib: the same figure on every machine
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': GREY,
    'xtick.color': GREY,
    'ytick.color': GREY,
    'xtick.labelcolor': 'black',
    'ytick.labelcolor': 'black',
    'legend.frameon': False,
    'lines.linewidth': 1.5,
    'savefig.dpi': 200,
}


@matplotlib.rc_context(STYLE)
def curves(history: pd.DataFrame, path: PathLike, mark: str) -> Path:
    """Loss and accuracy over the epochs of all phases; paper, figures 7 to 12.

    history: a row per epoch in order of time, with phase, epoch (1-based inside the phase), train_loss,
    test_loss (nats), train_accuracy and test_accuracy (in [0, 1]). nan leaves a gap.
    """
    figure = Figure((WIDTH, 3.0), layout='constrained')
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, history, 'loss', 1, 'cross-entropy loss (nats)')
    _curve(accuracy, history, 'accuracy', 100, 'accuracy (% of images)')
    figure.legend(*loss.get_legend_handles_labels(), loc='outside lower center', ncols=2)
    return _save(figure, path, mark)


def _curve(axes: Axes, history: pd.DataFrame, column: str, factor: float, label: str) -> None:
    epochs = np.arange(1, len(history) + 1)
    # A point alone between two nan has no line: only a marker shows it.
    size = 3 if len(history) <= 60 else 1
    for part, colour, style in (('train', BLUE, 'o-'), ('test', VERMILLION, 's--')):
        values = factor * history[f'{part}_{column}']
        axes.plot(epochs, values, style, color=colour, markersize=size, label=part)
    axes.set(xlabel='epoch', ylabel=label, xlim=(0.5, len(history) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y', color='0.9')
    phases = history['phase'].to_numpy()
    starts = [0, *np.flatnonzero(phases[1:] != phases[:-1]) + 1, len(phases)]
    for start, end in itertools.pairwise(starts):
        if start:
            axes.axvline(start + 0.5, color='black', linewidth=0.8, linestyle=':')
        middle = (start + end + 1) / 2
        axes.text(middle, 1.02, phases[start], ha='center', color=GREY, transform=axes.get_xaxis_transform())


@matplotlib.rc_context(STYLE)
def confusion_matrix(counts: Mapping[str, int], classes: tuple[str, str], path: PathLike, mark: str) -> Path:
    """Actual against predicted class. counts: tp, tn, fp, fn, images."""
    cells = np.array([[counts['tp'], counts['fn']], [counts['fp'], counts['tn']]])
    totals = cells.sum(axis=1, keepdims=True)
    shares = cells / np.maximum(totals, 1)
    figure = Figure((4.0, 3.4), layout='constrained')
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1.25)  # short of the darkest blue
    for (row, column), name in np.ndenumerate([['TP', 'FN'], ['FP', 'TN']]):
        colour = 'white' if shares[row, column] > 0.6 else 'black'
        text = {'ha': 'center', 'va': 'center', 'color': colour}
        axes.text(column, row - 0.05, str(cells[row, column]), fontsize=22, **text)
        axes.text(column, row - 0.32, name, **text)
        share = f'{100 * shares[row, column]:.0f} % of {totals[row, 0]}' if totals[row, 0] else 'of 0'
        axes.text(column, row + 0.25, share, **text)
    names = [classes[1], classes[0]]
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va='center')
    axes.set(xlabel='predicted', ylabel='actual')
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _save(figure, path, mark)


@matplotlib.rc_context(STYLE)
def image_sizes(
    heights: np.ndarray,
    widths: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, str],
    path: PathLike,
    mark: str,
) -> Path:
    """Height against width of every image as published; paper, figure 2. All int [N], sizes in pixels."""
    figure = Figure((4.2, 4.4), layout='constrained')
    axes = figure.subplots()
    for label, marker in ((0, 'o'), (1, '^')):
        mine = labels == label
        name = f'{classes[label]} (n = {mine.sum()})'
        axes.scatter(
            widths[mine], heights[mine], 22, marker=marker, facecolors='none', linewidths=1,
            edgecolors=CLASS_COLOURS[label], alpha=0.8, label=name,
        )  # fmt: skip
    limits = (0, 1.05 * max(heights.max(), widths.max()))
    axes.set(xlabel='width (pixels)', ylabel='height (pixels)', xlim=limits, ylim=limits, aspect='equal')
    axes.grid(color='0.92')
    axes.set_axisbelow(True)
    figure.legend(loc='outside lower center', ncols=2)
    return _save(figure, path, mark)


@matplotlib.rc_context(STYLE)
def grey_density(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, str], path: PathLike, mark: str
) -> Path:
    """Density of grey values per class; paper, figure 3. images: uint8 [N, H, W]. labels: int [N].

    A line is the mean over a class's images, a band the middle 80 % of them.
    """
    counts = np.stack([np.bincount(image.ravel() // 4, minlength=64) for image in images])
    density = counts / (4 * images[0].size)  # [N, 64] bins of four grey levels, share of pixels per level
    edges = np.arange(0, 257, 4)
    figure = Figure((WIDTH, 3.4), layout='constrained')
    axes = figure.subplots()
    for label, style in ((0, '-'), (1, '--')):
        mine = density[labels == label]
        if not len(mine):
            continue
        colour, name = CLASS_COLOURS[label], f'{classes[label]} (n = {len(mine)})'
        low, high = np.percentile(mine, (10, 90), axis=0)
        axes.stairs(high, edges, baseline=np.maximum(low, 1e-9), fill=True, color=colour, alpha=0.18)
        line = {'color': colour, 'linestyle': style, 'linewidth': 2, 'zorder': 3, 'label': name}
        axes.stairs(mine.mean(axis=0), edges, baseline=None, **line)
    axes.set(xlabel='grey value (0 black, 255 white)', ylabel='share of pixels per grey level')
    # Logarithmic: pure black and white hold most of the pixels. Below 1e-4 are a handful of pixels per image.
    axes.set(xlim=(0, 256), yscale='log')
    axes.set_ylim(bottom=1e-4)
    axes.set_title('lines: mean of the images, bands: the middle 80 % of the images', fontsize=8, color=GREY)
    figure.legend(loc='outside lower center', ncols=2)
    return _save(figure, path, mark)


@matplotlib.rc_context(STYLE)
def predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    ids: Sequence[str],
    classes: tuple[str, str],
    path: PathLike,
    mark: str,
) -> Path:
    """Test images with actual and predicted label, wrong ones framed; paper, figure 5.

    images: uint8 [N, H, W]. labels: int [N]. probabilities: float [N] of the positive class, from 0.5 on predicted
    as such; nan counts as wrong. ids: N names. At most 40 images are drawn, the first ones.
    """
    wrong = np.isnan(probabilities) | ((probabilities >= 0.5) != (labels == 1))
    shown = min(len(images), MAX_PREDICTIONS)
    rows = -(-shown // 5)
    figure = Figure((WIDTH, 2.1 * rows + 0.6), layout='constrained')
    grid = figure.subplots(rows, 5, squeeze=False).ravel()
    for axes in grid[shown:]:
        axes.remove()
    for index, axes in enumerate(grid[:shown]):
        axes.imshow(images[index], cmap='gray', vmin=0, vmax=255)
        predicted = 'undefined' if np.isnan(probabilities[index]) else classes[int(probabilities[index] >= 0.5)]
        verdict = f'actual {classes[int(labels[index])]}\npredicted {predicted}\nP = {probabilities[index]:.2f}'
        _caption(axes, ids[index], verdict, bool(wrong[index]))
    note = f'{wrong.sum()} of {len(images)} test images wrong (thick frame)'
    if shown < len(images):
        note += f'; shown are the first {shown} of {len(images)}, {wrong[:shown].sum()} of them wrong'
    figure.supxlabel(f'{note}\nP: predicted probability of {classes[1]}', fontsize=8)
    return _save(figure, path, mark)


def _caption(axes: Axes, name: str, verdict: str, wrong: bool) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=VERMILLION if wrong else '0.7', linewidth=4 if wrong else 0.8)
    short = name if len(name) <= 18 else f'{name[:8]}…{name[-9:]}'
    axes.set_title(short, fontsize=8, color=GREY, parse_math=False)  # a file name may have a $
    text = f'{verdict}  WRONG' if wrong else verdict
    axes.set_xlabel(text, fontsize=7.5, fontweight='bold' if wrong else 'normal')


@matplotlib.rc_context(STYLE)
def features(kernel: np.ndarray, bias: np.ndarray, image: np.ndarray, path: PathLike, mark: str) -> Path:
    """The first layer's kernels and its feature maps of one image after ReLU; paper, figure 6.

    kernel: float [K, K, 1, F]. bias: float [F]. image: uint8 [H, W], a network's input in [0, 1] times 255.
    At most 64 filters are drawn.
    """
    shown = min(kernel.shape[-1], MAX_FILTERS)
    kernels = np.moveaxis(kernel[:, :, 0, :shown], -1, 0)
    maps = feature_maps(kernel[..., :shown], bias[:shown], image)
    rows = -(-shown // 8)
    figure = Figure((WIDTH, 2.6 + 0.85 * rows), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.4, 0.2 + 0.85 * rows))
    left, right = top.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(image, cmap='gray', vmin=0, vmax=255)
    left.set_title('input image')
    left.set_axis_off()
    of = 'all' if shown == kernel.shape[-1] else f'the first {shown} of'
    limit = _largest(kernels)
    _mosaic(top, right, kernels, 1, Normalize(-limit, limit), 'weight')
    right.set_title(f'{of} {kernel.shape[-1]} kernels ({len(kernel)}x{len(kernel)})')
    axes = bottom.subplots()
    # One scale for all maps shows which are dead; its square root keeps the weak ones visible.
    _mosaic(bottom, axes, maps, 8, PowerNorm(0.5, 0, _largest(maps)), 'activation')
    axes.set_title('feature maps after ReLU, in the same order')
    return _save(figure, path, mark)


def _largest(values: np.ndarray) -> float:
    """The largest finite magnitude, 1 where there is none: a diverged trial is drawn too."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0


def _mosaic(
    figure: FigureBase, axes: Axes, tiles: np.ndarray, gap: int, norm: Normalize, unit: str
) -> None:
    """Draws tiles, float [F, H, W], in rows of eight on one grey scale. One picture is faster than F axes."""
    count, height, width = tiles.shape
    canvas = np.full((-(-count // 8) * (height + gap), 8 * (width + gap)), np.nan)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 8)
        y, x = row * (height + gap), column * (width + gap)
        canvas[y : y + height, x : x + width] = tile
    picture = axes.imshow(canvas[:-gap, :-gap], cmap='gray', norm=norm, interpolation='nearest')
    axes.set_axis_off()
    figure.colorbar(picture, ax=axes, label=unit, shrink=0.8)


@matplotlib.rc_context(STYLE)
def swept(board: pd.DataFrame, key: str, score: str, path: PathLike, mark: str) -> Path:
    """A score of recipes against a setting that they differ in.

    board: a row per recipe with columns key, score and, if the score has an interval, score_low and score_high. Numbers
    have an axis to scale (logarithmic if all are positive and far apart), other values one place each.
    """
    board = board.dropna(subset=[key, score]).sort_values(key)
    is_numeric = pd.api.types.is_numeric_dtype(board[key]) and not pd.api.types.is_bool_dtype(board[key])
    places = board[key].astype(float) if is_numeric else pd.factorize(board[key].astype(str))[0]
    figure = Figure((WIDTH, 3.4), layout='constrained')
    axes = figure.subplots()
    if f'{score}_low' in board:
        axes.vlines(places, board[f'{score}_low'], board[f'{score}_high'], color=BLUE, linewidth=1, alpha=0.6)
    axes.scatter(places, board[score], 18, color=BLUE, zorder=3)
    if is_numeric and places.min() > 0 and places.max() >= 50 * places.min():
        axes.set_xscale('log')
    elif not is_numeric:
        axes.set_xticks(sorted(set(places)), list(dict.fromkeys(board[key].astype(str))))
    n = f'{len(board)} recipes' + ('; lines: 95 % intervals over images' if f'{score}_low' in board else '')
    axes.set_title(n, fontsize=8, color=GREY)
    axes.set_xlabel(key, parse_math=False)
    axes.set_ylabel(score)
    axes.grid(axis='y', color='0.9')
    return _save(figure, path, mark)


def feature_maps(kernel: np.ndarray, bias: np.ndarray, image: np.ndarray) -> np.ndarray:
    """kernel: float [K, K, 1, F], K odd, bias: float [F], image: uint8 [H, W] -> float64 [F, H, W] after ReLU.

    A network's convolution is a correlation, with zeros around the image. A larger stride takes some of these places.
    """
    pixels = image.astype(np.float64) / 255
    weights = np.moveaxis(kernel[:, :, 0, :], -1, 0).astype(np.float64)  # [F, K, K]
    maps = np.stack([ndimage.correlate(pixels, each, mode='constant') for each in weights])
    return np.maximum(maps + bias[:, None, None], 0)


def _save(figure: Figure, path: PathLike, mark: str) -> Path:
    """Writes the figure whole or not at all, so that a killed run leaves no half of a PNG."""
    path = Path(path)
    if mark:
        figure.suptitle(mark, fontsize=11, fontweight='bold', color=VERMILLION)
    with files.replacing(path) as file:
        figure.savefig(file, format='png', metadata={'Description': mark} if mark else None)
    return path
