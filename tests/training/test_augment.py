"""Each transform against an independent reference on the same parameters; what is drawn; `augment`."""

import os

os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'  # or the import asks the package index for a newer version

import albumentations
import albumentations.augmentations.geometric.functional as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bhcnet_jax.configs import base
from bhcnet_jax.training import augment

H, W = 48, 60
# White noise has the steepest slopes, so a wrong coordinate shows; not square, so that swapped axes show.
IMAGE = np.random.default_rng(0).random((H, W), dtype=np.float32)
STRENGTHS = {policy: base.get_config().augment[policy].to_dict() for policy in ('affine', 'distort')}
IDENTITY = {
    'affine': dict.fromkeys(STRENGTHS['affine'], 0.0),
    'distort': dict.fromkeys(STRENGTHS['distort'], 0.0) | {'crop': 1.0},
}
POLICIES = pytest.mark.parametrize('policy', ['affine', 'distort'])

# Compiled once: compiling is what takes the time here.
augment_many = jax.jit(jax.vmap(augment.augment, in_axes=(0, None, None, None)), static_argnums=3)
warp = jax.jit(augment.warp)
affine = jax.jit(augment.affine)
distort = jax.jit(augment.distort)
optical_distortion_coords = jax.jit(augment.optical_distortion_coords, static_argnums=3)
grid_distortion_coords = jax.jit(augment.grid_distortion_coords, static_argnums=4)
PARAMETERS = {
    'affine': jax.jit(jax.vmap(augment.affine_parameters, in_axes=(0, None))),
    'distort': jax.jit(jax.vmap(augment.distort_parameters, in_axes=(0, None))),
}


def augmented(policy, strengths, image=IMAGE):
    """The images of 16 keys, float32 [16, H, W]."""
    keys = jax.random.split(jax.random.key(0), 16)
    return np.asarray(augment_many(keys, jnp.asarray(image), strengths, policy))


def drawn(policy, **changed):
    """The parameters of 2000 keys, each float64 [2000, ...]."""
    parameters = PARAMETERS[policy](jax.random.split(jax.random.key(1), 2000), STRENGTHS[policy] | changed)
    return {name: np.asarray(values, np.float64) for name, values in parameters.items()}


def on_screen(row_cols):
    """A linear map of (x to the right, y up), as textbooks have it, as a map of (row, column)."""
    return row_cols[::-1, ::-1] * np.array([[1, -1], [-1, 1]])


def test_warp_equals_scipy_inside_on_the_border_and_outside():
    generator = np.random.default_rng(1)
    rows, cols = generator.uniform(-3, H + 2, (H, W)), generator.uniform(-3, W + 2, (H, W))
    expected = scipy.ndimage.map_coordinates(IMAGE, [rows, cols], order=1, mode='grid-constant')
    from_middle = [jnp.asarray(x, jnp.float32) for x in (rows - (H - 1) / 2, cols - (W - 1) / 2)]
    ours = warp(jnp.asarray(IMAGE), *from_middle)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    outside = (rows <= -1) | (rows >= H) | (cols <= -1) | (cols >= W)
    assert outside.any() and not np.asarray(ours)[outside].any()


@pytest.mark.parametrize('shape', [(1, 1), (4, 7), (5, 2)])
def test_sampling_at_the_pixel_centres_returns_the_image_exactly(shape):
    image = jnp.asarray(IMAGE[: shape[0], : shape[1]])
    np.testing.assert_array_equal(warp(image, *augment.pixel_coords(shape)), image)


def transformed(image, flip=False, shear=0.0, zoom=1.0, rotation=0.0, shift=(0.0, 0.0)):
    shift = jnp.asarray(shift, jnp.float32)
    return np.asarray(affine(jnp.asarray(image, jnp.float32), flip, shear, zoom, rotation, shift))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(
    ('shear', 'zoom', 'rotation', 'shift'),
    [
        (0.0, 1.0, 10.0, (0.0, 0.0)),
        (5.0, 1.0, 0.0, (0.0, 0.0)),
        (0.0, 0.8, 0.0, (0.0, 0.0)),
        (0.0, 1.0, 0.0, (0.05, -0.04)),
        (25.0, 1.3, -70.0, (-0.2, 0.1)),
        (4.0, 0.95, 130.0, (0.05, 0.05)),
    ],
)
def test_affine_equals_scipy_affine_transform(flip, shear, zoom, rotation, shift):
    angle, lean = np.deg2rad([rotation, shear])
    mirror = np.diag([-1.0 if flip else 1.0, 1.0])
    lean = np.array([[1, -np.tan(lean)], [0, 1]])
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_source = np.linalg.inv(on_screen(rotate @ (zoom * lean) @ mirror))
    middle = np.array([(H - 1) / 2, (W - 1) / 2])
    offset = middle - to_source @ (middle + np.array(shift) * [H, W])
    expected = scipy.ndimage.affine_transform(IMAGE, to_source, offset, order=1, mode='grid-constant')
    ours = transformed(IMAGE, flip, shear, zoom, rotation, shift)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize('size', [47, 48])
def test_a_positive_rotation_turns_counterclockwise_on_the_screen(size):
    image = IMAGE[:size, :size]
    np.testing.assert_allclose(transformed(image, rotation=90.0), np.rot90(image), atol=1e-4)


@pytest.mark.parametrize('width', [W - 1, W])
def test_a_flip_mirrors_left_and_right(width):
    np.testing.assert_array_equal(transformed(IMAGE[:, :width], flip=True), IMAGE[:, :width][:, ::-1])


def test_a_positive_shift_moves_down_and_to_the_right_and_leaves_black():
    expected = np.zeros_like(IMAGE)
    expected[3:, 5:] = IMAGE[:-3, :-5]
    np.testing.assert_allclose(transformed(IMAGE, shift=(3 / H, 5 / W)), expected, atol=1e-4)


def test_a_zoom_above_one_enlarges():
    square = np.zeros((40, 40))
    square[15:25, 15:25] = 1
    ours = transformed(square, zoom=2.0)
    assert ours[10:30, 10:30].mean() > 0.95 and ours.sum() == pytest.approx(4 * square.sum(), rel=0.01)


def test_a_positive_shear_leans_upright_lines_counterclockwise_and_keeps_level_lines_level():
    upright, level = np.zeros((41, 41)), np.zeros((41, 41))
    upright[:, 20] = 1
    level[10] = 1
    leaning = transformed(upright, shear=20.0)
    drift = 10 * np.tan(np.deg2rad(20.0))
    np.testing.assert_allclose(leaning[[10, 30]] @ np.arange(41), [20 - drift, 20 + drift], atol=1e-3)
    np.testing.assert_allclose(transformed(level, shear=20.0)[:, 15:25], level[:, 15:25], atol=1e-5)


def test_a_rotated_white_image_has_black_corners_and_a_white_middle():
    ours = transformed(np.ones((64, 64)), rotation=45.0)
    assert not ours[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert ours[20:44, 20:44].min() > 1 - 1e-6


@pytest.mark.parametrize('k', [-0.3, -0.1, 0.0, 0.3])
def test_optical_distortion_equals_albumentations(k):
    """Its middle is at index (H/2, W/2), ours half a pixel before, so ours gets its coordinates."""
    map_x, map_y = reference.get_fisheye_distortion_maps((H, W), k)
    rows, cols = np.mgrid[:H, :W].astype(np.float32) - np.array([H / 2, W / 2], np.float32)[:, None, None]
    rows, cols = optical_distortion_coords(jnp.asarray(rows), jnp.asarray(cols), k, (H, W))
    np.testing.assert_allclose(rows + H / 2, map_y, atol=1e-4)
    np.testing.assert_allclose(cols + W / 2, map_x, atol=1e-4)
    ours = warp(jnp.asarray(IMAGE), rows + 0.5, cols + 0.5)
    expected = albumentations.OpticalDistortion(mode='fisheye').apply(IMAGE, map_x, map_y)
    np.testing.assert_allclose(ours, expected, atol=1 / 32)  # OpenCV 4 rounds to 1/32 pixel


def grid_of_albumentations(row_steps, col_steps):
    cells = len(row_steps)
    # It takes a step more than cells for the pixels left over; here none are.
    steps = reference.normalize_grid_distortion_steps((H, W), cells, [*col_steps, 1.0], [*row_steps, 1.0])
    return reference.generate_grid((H, W), steps['steps_x'], steps['steps_y'], cells)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_grid_distortion_equals_albumentations(seed):
    """It spreads a band's n pixels over the whole band, both ends included; ours gets those coordinates."""
    row_steps, col_steps = np.random.default_rng(seed).uniform(0.7, 1.3, (2, 4))
    map_x, map_y = grid_of_albumentations(row_steps, col_steps)
    rows, cols = (
        np.concatenate([np.linspace(band, band + 1, size // 4) for band in range(4)]) * size / 4 - size / 2
        for size in (H, W)
    )
    steps = jnp.asarray(row_steps, jnp.float32), jnp.asarray(col_steps, jnp.float32)
    rows, cols = jnp.asarray(rows, jnp.float32)[:, None], jnp.asarray(cols, jnp.float32)[None]
    rows, cols = grid_distortion_coords(rows, cols, *steps, (H, W))
    np.testing.assert_allclose(jnp.broadcast_to(rows + H / 2, (H, W)), map_y, atol=1e-4)
    np.testing.assert_allclose(jnp.broadcast_to(cols + W / 2, (H, W)), map_x, atol=1e-4)
    ours = warp(jnp.asarray(IMAGE), rows + 0.5, cols + 0.5)
    expected = albumentations.GridDistortion(num_steps=4).apply(IMAGE, map_x, map_y)
    np.testing.assert_allclose(ours, expected, atol=1 / 32)


@pytest.mark.parametrize('seed', range(4))
def test_distort_equals_its_five_maps_in_double_precision_through_scipy(seed):
    generator = np.random.default_rng(seed)
    side, scale, optical = generator.uniform([0.8, 0.9, -0.3], [1.0, 1.1, 0.3])
    angle = generator.uniform(0, 30)
    middle = generator.uniform(-(1 - side) / 2, (1 - side) / 2, 2)
    steps = generator.uniform(0.7, 1.3, (2, 5))

    def knots(steps, size):
        edges = np.concatenate([[0], np.cumsum(steps)])
        return np.interp(np.arange(size) + 0.5, np.linspace(0, size, 6), edges * size / edges[-1]) - size / 2

    point = np.stack(np.meshgrid(knots(steps[0], H), knots(steps[1], W), indexing='ij'))
    point = point * (1 + optical * (point**2).sum(0) / (H**2 + W**2) * 4)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    rotate = on_screen(np.array([[cos, -sin], [sin, cos]]))
    point = np.einsum('ij,jhw->ihw', np.linalg.inv(scale * rotate), point)
    point = side * point + (middle * [H, W])[:, None, None]
    point += np.array([(H - 1) / 2, (W - 1) / 2])[:, None, None]
    expected = scipy.ndimage.map_coordinates(IMAGE, point, order=1, mode='grid-constant')
    arrays = [jnp.asarray(x, jnp.float32) for x in (side, middle, angle, scale, optical, *steps)]
    np.testing.assert_allclose(distort(jnp.asarray(IMAGE), *arrays), expected, atol=1e-4)


def test_a_crop_fills_the_frame_as_scipy_zoom_does():
    """The upper left quarter, twice as large; the outermost pixels see beyond the crop, scipy's do not."""
    ones = jnp.ones(augment.GRID_CELLS, jnp.float32)
    middle = jnp.asarray([-0.25, -0.25], jnp.float32)
    ours = distort(jnp.asarray(IMAGE), 0.5, middle, 0.0, 1.0, 0.0, ones, ones)
    quarter = IMAGE[: H // 2, : W // 2]
    expected = scipy.ndimage.zoom(quarter, 2, order=1, mode='grid-constant', grid_mode=True)
    np.testing.assert_allclose(ours[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-5)


def test_noise_has_the_given_standard_deviation_and_is_clipped():
    grey = jnp.full((200, 200), 0.5, jnp.float32)
    noise = augment.gaussian_noise(jax.random.key(0), grey, 0.05) - grey
    assert abs(float(noise.mean())) < 0.001
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    wild = augment.gaussian_noise(jax.random.key(0), grey, 5.0)
    assert float(wild.min()) == 0 and float(wild.max()) == 1


def assert_uniform(values, low, high):
    """In the range, and within 2 % of its width of both ends."""
    margin = 0.02 * (high - low)
    assert low - 1e-6 <= values.min() <= low + margin
    assert high - margin <= values.max() <= high + 1e-6
    assert values.mean() == pytest.approx((low + high) / 2, abs=2 * margin)


def test_affine_parameters_fill_their_ranges():
    parameters = drawn('affine')
    assert_uniform(parameters['shear'], 0, 5)
    assert_uniform(parameters['zoom'], 0.95, 1.05)
    assert_uniform(parameters['rotation'], -10, 10)
    for axis in (0, 1):
        assert_uniform(parameters['shift'][:, axis], -0.05, 0.05)


@pytest.mark.parametrize(('probability', 'low', 'high'), [(0.0, 0, 0), (0.5, 0.45, 0.55), (1.0, 1, 1)])
def test_flips_are_as_frequent_as_asked(probability, low, high):
    flips = drawn('affine', flip=probability)['flip']
    assert low <= flips.mean() <= high


def test_distort_parameters_fill_their_ranges():
    parameters = drawn('distort')
    assert_uniform(parameters['side'], 0.8, 1)
    assert_uniform(parameters['rotation'], 0, 30)
    assert_uniform(parameters['scale'], 0.9, 1.1)
    assert_uniform(parameters['optical'], -0.3, 0.3)
    for name in ('row_steps', 'col_steps'):
        for cell in range(augment.GRID_CELLS):
            assert_uniform(parameters[name][:, cell], 0.7, 1.3)


def test_crops_lie_inside_the_image_and_reach_its_edges():
    parameters = drawn('distort')
    for axis in (0, 1):
        middle, half = parameters['middle'][:, axis], parameters['side'] / 2
        assert -0.5 - 1e-6 <= (middle - half).min() < -0.49
        assert 0.49 < (middle + half).max() <= 0.5 + 1e-6


@POLICIES
def test_no_two_parameters_are_drawn_together(policy):
    columns = np.concatenate([values.reshape(2000, -1) for values in drawn(policy).values()], axis=1)
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.1  # 4.5 standard errors of 2000 independent draws


@POLICIES
def test_zero_strengths_return_the_image_exactly(policy):
    ours = augmented(policy, IDENTITY[policy])
    np.testing.assert_array_equal(ours, np.broadcast_to(IMAGE, ours.shape))


def test_policy_none_returns_the_image():
    assert (augmented('none', {}) == IMAGE).all()


@pytest.mark.parametrize(
    ('policy', 'name'), [(policy, name) for policy in STRENGTHS for name in STRENGTHS[policy]]
)
def test_every_strength_of_the_config_changes_the_image(policy, name):
    strengths = IDENTITY[policy] | {name: STRENGTHS[policy][name]}
    assert np.abs(augmented(policy, strengths) - IMAGE).max() > 0.01


@POLICIES
def test_two_keys_give_two_images_and_one_key_gives_one(policy):
    images = augmented(policy, STRENGTHS[policy])
    assert len(np.unique(images, axis=0)) == len(images)
    np.testing.assert_array_equal(images, augmented(policy, STRENGTHS[policy]))


@POLICIES
def test_eager_jit_and_vmap_agree(policy):
    key = jax.random.split(jax.random.key(0), 16)[3]
    eager = augment.augment(key, jnp.asarray(IMAGE), STRENGTHS[policy], policy)
    jitted = jax.jit(augment.augment, static_argnums=3)(key, jnp.asarray(IMAGE), STRENGTHS[policy], policy)
    np.testing.assert_allclose(jitted, eager, atol=1e-4)
    np.testing.assert_allclose(augmented(policy, STRENGTHS[policy])[3], eager, atol=1e-4)


@POLICIES
def test_another_strength_compiles_nothing(policy):
    traces = []

    @jax.jit
    def one(key, strengths):
        traces.append(policy)
        return augment.augment(key, jnp.asarray(IMAGE), strengths, policy)

    strengths = {name: jnp.float32(value) for name, value in STRENGTHS[policy].items()}
    full = one(jax.random.key(0), strengths)
    half = one(jax.random.key(0), {name: value / 2 for name, value in strengths.items()})
    assert len(traces) == 1
    assert not np.array_equal(full, half)


@POLICIES
@pytest.mark.parametrize('grey', [0.0, 1.0])
def test_images_stay_float32_of_the_same_shape_in_zero_to_one(policy, grey):
    image = np.full((H, W), grey, np.float32)
    strong = {name: value * (0.5 if name == 'crop' else 2) for name, value in STRENGTHS[policy].items()}
    images = augmented(policy, strong, image)
    assert images.dtype == np.float32 and images.shape == (16, H, W)
    assert images.min() >= 0 and images.max() <= 1


@POLICIES
def test_the_source_image_is_left_alone(policy):
    image = IMAGE.copy()
    augment.augment(jax.random.key(0), image, STRENGTHS[policy], policy)
    np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize('wrong', [jnp.zeros((H, W), jnp.uint8), jnp.zeros((2, H, W), jnp.float32)])
def test_bytes_and_batches_are_refused(wrong):
    with pytest.raises(ValueError, match=r'expected float32\[H, W\] in \[0, 1\]'):
        augment.augment(jax.random.key(0), wrong, STRENGTHS['affine'], 'affine')


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'afine', expected one of affine, distort, none"):
        augment.augment(jax.random.key(0), jnp.asarray(IMAGE), {}, 'afine')


def reference_intensity(image, blur, coarseness, brightness, contrast, gamma):
    """The same with loops over rows, in float64."""

    def resample(row):
        size = len(row)
        places = np.arange(size)
        kernels = np.exp(-((places[:, None] - places) ** 2) / (2 * blur**2)) if blur else np.eye(size)
        row = np.array([np.average(row, weights=kernel) for kernel in kernels])
        starts = np.arange(0, size - 1e-6, coarseness)
        large = []
        for start in starts:
            parts = np.clip(np.minimum(places + 1, start + coarseness) - np.maximum(places, start), 0, None)
            large.append(np.average(row, weights=parts))
        return np.interp((places + 0.5) / coarseness - 0.5, np.arange(len(large)), large)

    image = np.apply_along_axis(resample, 1, np.apply_along_axis(resample, 0, image.astype(np.float64)))
    image = brightness * image
    return np.clip((image - image.mean()) * contrast + image.mean(), 0, 1) ** gamma


INTENSITY_OFF = {'blur': 0.0, 'coarseness': 1.0, 'brightness': 1.0, 'contrast': 1.0, 'gamma': 1.0}


@pytest.mark.parametrize(
    'changed',
    [{}, {'blur': 1.3}, {'coarseness': 1.7}, {'coarseness': 3.0}, {'brightness': 0.8}, {'contrast': 1.4},
     {'gamma': 1.5}, {'blur': 0.7, 'coarseness': 2.1, 'brightness': 1.2, 'contrast': 0.7, 'gamma': 0.7}],
)  # fmt: skip
def test_intensity_equals_loops_over_rows(changed):
    parameters = INTENSITY_OFF | changed
    ours = jax.jit(augment.intensity)(jnp.asarray(IMAGE), **parameters)
    np.testing.assert_allclose(ours, reference_intensity(IMAGE, **parameters), atol=1e-5)


def test_a_blur_inside_the_image_is_that_of_scipy():
    expected = scipy.ndimage.gaussian_filter(IMAGE.astype(np.float64), 1.5, truncate=10)
    ours = augment.intensity(jnp.asarray(IMAGE), **INTENSITY_OFF | {'blur': 1.5})
    np.testing.assert_allclose(ours[10:-10, 10:-10], expected[10:-10, 10:-10], atol=1e-5)


def test_intensity_draws_within_its_strengths_and_with_zero_strengths_changes_nothing():
    strengths = base.get_config().augment.intensity.to_dict()
    draw = jax.jit(jax.vmap(augment.intensity_parameters, in_axes=(0, None)))
    found = draw(jax.random.split(jax.random.key(1), 2000), strengths)
    ranges = {'blur': (0, 1), 'coarseness': (1, 2), 'brightness': (0.8, 1.2), 'contrast': (0.7, 1.3),
              'gamma': (np.exp(-0.4), np.exp(0.4)), 'noise': (0, 0.03)}  # fmt: skip
    for name, (low, high) in ranges.items():
        np.testing.assert_allclose([found[name].min(), found[name].max()], [low, high], atol=0.02 * (high - low))
    pairs = np.corrcoef([np.asarray(each) for each in found.values()])
    assert np.abs(pairs - np.eye(6)).max() < 0.1  # each has a key of its own
    np.testing.assert_array_equal(augmented('intensity', dict.fromkeys(strengths, 0.0))[0], IMAGE)
    assert np.abs(augmented('intensity', strengths)[0] - IMAGE).max() > 0.05


def test_a_policy_of_two_is_one_after_the_other_with_keys_of_their_own():
    strengths = {part: base.get_config().augment[part].to_dict() for part in ('affine', 'intensity')}
    key = jax.random.key(3)
    both = augment.augment(key, jnp.asarray(IMAGE), strengths, 'affine+intensity')
    expected = jnp.asarray(IMAGE)
    for part_key, part in zip(jax.random.split(key), ('affine', 'intensity'), strict=True):
        expected = augment.augment(part_key, expected, strengths[part], part)
    np.testing.assert_array_equal(both, expected)
