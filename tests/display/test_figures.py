import inspect
import os
import resource
import subprocess
import sys

import jax
import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bhcnet_jax.display import figures

MARK = 'PHANTOM: synthetic images'
VERMILLION = np.array([0xD5, 0x5E, 0x00])
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 16, 16), np.uint8)
LABELS = np.arange(12) % 2
KERNEL = RNG.normal(0, 0.3, (3, 3, 1, 10)).astype(np.float32)
CLASSES = ('normal', 'hemorrhage')
BIAS = RNG.normal(0, 0.1, 10).astype(np.float32)


def history(epochs=(3, 2)):
    phases = ['balanced'] * epochs[0] + ['imbalanced'] * epochs[1]
    values = np.linspace(0.7, 0.4, len(phases))
    columns = dict.fromkeys(('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy'), values)
    numbers = [*range(1, epochs[0] + 1), *range(1, epochs[1] + 1)]
    return pd.DataFrame({'phase': phases, 'epoch': numbers, **columns})


ARGUMENTS = {
    'curves': (history(),),
    'confusion_matrix': ({'tp': 10, 'tn': 8, 'fp': 2, 'fn': 0}, CLASSES),
    'image_sizes': (RNG.integers(100, 600, 12), RNG.integers(100, 600, 12), LABELS, CLASSES),
    'grey_density': (IMAGES, LABELS, CLASSES),
    'predictions': (IMAGES[:6], LABELS[:6], np.linspace(0, 1, 6), [f'{i:03}.png' for i in range(6)], CLASSES),
    'features': (KERNEL, BIAS, IMAGES[0]),
    'swept': (
        pd.DataFrame({'lr': [1e-4, 1e-3], 'auc': [0.6, 0.7], 'auc_low': [0.5, 0.6], 'auc_high': [0.7, 0.8]}),
        *('lr', 'auc'),
    ),
}


def draw(name, path, mark='', arguments=None):
    written = getattr(figures, name)(*(arguments or ARGUMENTS[name]), path, mark)
    assert pixels(written).std() > 0  # a picture, and not an empty one
    return written


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert('RGB')).astype(int)


def metadata(path):
    with Image.open(path) as image:
        return dict(image.text)


@pytest.fixture(scope='module', params=ARGUMENTS)
def figure(request, tmp_path_factory):
    """Every figure once with the mark and once without."""
    folder = tmp_path_factory.mktemp(request.param)
    marked = draw(request.param, folder / 'marked.png', MARK)
    return marked, draw(request.param, str(folder / 'real.png'))


def test_every_drawing_function_takes_a_mark_and_is_tested_here():
    functions = inspect.getmembers(figures, inspect.isfunction)
    drawing = {name for name, function in functions if 'mark' in inspect.signature(function).parameters}
    assert drawing - {'_save'} == set(ARGUMENTS)


def test_synthetic_images_are_named_in_the_metadata(figure):
    marked, real = figure
    assert metadata(marked)['Description'] == MARK
    assert 'Description' not in metadata(real)


def test_synthetic_images_are_named_in_the_picture(figure):
    """The mark has a colour of its own; at the top of the picture stand letters of 14 pixels or more."""
    marked, real = ((np.abs(pixels(path)[:40] - VERMILLION).max(axis=-1) < 30) for path in figure)
    assert np.count_nonzero(marked.any(axis=1)) >= 14
    assert np.ptp(np.flatnonzero(marked.any(axis=0))) >= 300
    assert real.sum() < marked.sum() / 4


def test_a_figure_is_wide_enough_to_read_and_nothing_is_cut_off(figure):
    for path in figure:
        picture = pixels(path)
        assert picture.shape[1] >= 800
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert edge.min() > 200, 'ink in the outermost pixels'


def test_the_path_comes_back_and_nothing_else_is_left(figure):
    assert {path.name for path in figure[0].parent.iterdir()} == {'marked.png', 'real.png'}
    assert [path.name for path in figure] == ['marked.png', 'real.png']


def test_a_full_disk_leaves_the_old_figure_whole(tmp_path):
    path = draw('confusion_matrix', tmp_path / 'a.png')
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            draw('confusion_matrix', path, MARK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['a.png']


def test_no_display_and_no_pyplot_is_needed(tmp_path):
    code = (
        'import sys; from bhcnet_jax.display import figures;'
        f'figures.confusion_matrix(dict(tp=1, tn=1, fp=0, fn=0), ("a", "b"), {str(tmp_path / "a.png")!r}, "");'
        'sys.exit("matplotlib.pyplot" in sys.modules)'
    )
    environment = {k: v for k, v in os.environ.items() if k != 'DISPLAY'} | {'PYTHONPATH': os.getcwd()}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True)


def test_the_style_of_other_figures_is_left_alone(tmp_path):
    draw('curves', tmp_path / 'a.png')
    assert {key: matplotlib.rcParams[key] for key in figures.STYLE} == {
        key: matplotlib.rcParamsOrig[key] for key in figures.STYLE
    }


@pytest.mark.parametrize('hole', [np.nan, np.inf])
def test_curves_with_holes_are_drawn_around_them(hole, tmp_path):
    holed = history((6, 4))
    whole = pixels(draw('curves', tmp_path / 'whole.png', arguments=(holed,)))
    holed.loc[2:4, ['train_loss', 'test_loss', 'train_accuracy', 'test_accuracy']] = hole
    picture = pixels(draw('curves', tmp_path / 'holed.png', arguments=(holed,)))
    # The axes are the same, so all that differs is the missing piece of line.
    assert 0 < np.count_nonzero((picture != whole).any(axis=-1)) < 0.03 * whole[..., 0].size
    holed.loc[:, 'train_loss':] = hole
    draw('curves', tmp_path / 'nothing.png', arguments=(holed,))


def drawn(picture, colour, within=30):
    """Where a picture has about this colour, bool [H, W]."""
    return np.abs(picture - 255 * np.array(matplotlib.colors.to_rgb(colour))).max(axis=-1) < within


@pytest.mark.parametrize('epochs', [(1, 0), (1, 1), (300, 100)])
def test_curves_of_any_length_are_drawn(epochs, tmp_path):
    falling = history(epochs)
    falling[['test_loss', 'test_accuracy']] += 0.1  # apart from the training part's
    picture = pixels(draw('curves', tmp_path / 'a.png', arguments=(falling,)))[:-60]  # without the legend
    for panel in np.array_split(picture, 2, axis=1):
        for colour in (figures.BLUE, figures.VERMILLION):
            columns = np.flatnonzero(drawn(panel, colour).any(axis=0))
            assert len(columns) >= 5
            # A point alone is in the middle of its axes, several reach from end to end.
            assert np.ptp(columns) > 0.4 * panel.shape[1] or sum(epochs) == 1


def test_the_row_of_an_empty_class_is_pale(tmp_path):
    counts = {'tp': 0, 'tn': 5, 'fp': 5, 'fn': 0}
    picture = pixels(draw('confusion_matrix', tmp_path / 'a.png', arguments=(counts, CLASSES)))
    shares = (0.0, 0.5)  # of the row's images, in both of its cells
    for share, row in zip(shares, np.array_split(picture[: int(0.85 * len(picture))], 2), strict=True):
        colour = matplotlib.colormaps['Blues'](share / 1.25)
        assert drawn(row, colour, within=3).mean() > 0.5


def test_grey_density_of_one_class_has_one_line(tmp_path):
    picture = pixels(draw('grey_density', tmp_path / 'one.png', arguments=(IMAGES, np.ones(12, int), CLASSES)))
    assert np.ptp(np.flatnonzero(drawn(picture, figures.VERMILLION).any(axis=0))) > 0.7 * picture.shape[1]
    assert not drawn(picture, figures.BLUE).any()


def test_grey_density_of_white_images_is_at_the_right_end(tmp_path):
    arguments = (np.full((4, 8, 8), 255, np.uint8), LABELS[:4], CLASSES)
    picture = pixels(draw('grey_density', tmp_path / 'flat.png', arguments=arguments))[:-60]  # without the legend
    columns = np.flatnonzero(drawn(picture, figures.BLUE).any(axis=0) | drawn(picture, figures.VERMILLION).any(axis=0))
    assert columns.min() > 0.9 * picture.shape[1]


@pytest.mark.parametrize(
    ('label', 'probability', 'wrong'),
    [(1, 0.9, False), (1, 0.1, True), (0, 0.9, True), (0, 0.1, False), (1, np.nan, True), (0, np.nan, True)],
)
def test_only_a_wrong_prediction_is_framed(label, probability, wrong, tmp_path):
    arguments = (np.zeros((1, 16, 16), np.uint8), np.array([label]), np.array([probability]), ['a'], CLASSES)
    picture = pixels(draw('predictions', tmp_path / 'a.png', arguments=arguments))
    frame = np.abs(picture - VERMILLION).max(axis=-1) < 3
    assert frame.any() == wrong
    # Thick, so that black and white is enough: the left side of the frame, half way up.
    rows, columns = frame.any(axis=1).nonzero()[0], frame.any(axis=0).nonzero()[0]
    assert not wrong or frame[rows.mean().astype(int), : columns.mean().astype(int)].sum() >= 8


def test_an_image_may_have_any_name(tmp_path):
    arguments = (IMAGES[:1], LABELS[:1], np.ones(1), [r'$\frac$ & %.png'], CLASSES)
    draw('predictions', tmp_path / 'a.png', arguments=arguments)


def test_test_images_beyond_the_limit_are_left_out(tmp_path, monkeypatch):
    def height(n):
        names = ['a/very/long $name$.png'] * n
        arguments = (np.zeros((n, 8, 8), np.uint8), np.zeros(n, int), np.ones(n), names, CLASSES)
        return pixels(draw('predictions', tmp_path / f'{n}.png', arguments=arguments)).shape[0]

    assert figures.MAX_PREDICTIONS == 40
    monkeypatch.setattr(figures, 'MAX_PREDICTIONS', 5)
    assert height(100) == height(5)
    monkeypatch.setattr(figures, 'MAX_PREDICTIONS', 6)
    assert height(100) > height(5)


@pytest.mark.parametrize('size', [3, 7])
def test_feature_maps_are_those_of_the_networks_convolution(size):
    kernel = np.random.default_rng(0).normal(0, 0.1, (size, size, *KERNEL.shape[2:])).astype(np.float32)
    image = (IMAGES[0] / np.float32(255)).astype(np.float32)[None, :, :, None]
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    expected = jax.lax.conv_general_dilated(image, kernel, (1, 1), 'SAME', dimension_numbers=dimensions)
    expected = np.moveaxis(np.maximum(np.asarray(expected) + BIAS, 0)[0], -1, 0)
    np.testing.assert_allclose(figures.feature_maps(kernel, BIAS, IMAGES[0]), expected, atol=1e-5)


def test_a_figure_has_as_many_rows_as_its_filters_fill_but_eight_at_most(tmp_path):
    def height(filters):
        arguments = (np.resize(KERNEL, (3, 3, 1, filters)), np.zeros(filters, np.float32), IMAGES[0])
        return pixels(draw('features', tmp_path / f'{filters}.png', arguments=arguments)).shape[0]

    assert height(1) == height(8) < height(9) < height(64) == height(100)


@pytest.mark.parametrize(('weight', 'shade'), [(0.0, 127), (np.nan, 255)])
def test_a_dead_kernel_is_grey_and_a_diverged_one_blank(weight, shade, tmp_path):
    arguments = (np.full_like(KERNEL, weight), 0 * BIAS, IMAGES[0])
    picture = pixels(draw('features', tmp_path / 'a.png', arguments=arguments))
    kernels = picture[picture.shape[0] // 4, picture.shape[1] // 2 : picture.shape[1] * 3 // 4]
    assert np.mean(np.abs(kernels - shade).max(axis=-1) < 4) > 0.7


def test_a_diverged_filter_leaves_the_others_visible(tmp_path):
    kernel = KERNEL.copy()
    kernel[..., 0] = 0
    whole = pixels(draw('features', tmp_path / 'whole.png', arguments=(kernel, BIAS, IMAGES[0])))
    kernel[..., 0] = np.nan
    holed = pixels(draw('features', tmp_path / 'holed.png', arguments=(kernel, BIAS, IMAGES[0])))
    assert 0 < np.count_nonzero((whole != holed).any(axis=-1)) < 0.03 * whole[..., 0].size
