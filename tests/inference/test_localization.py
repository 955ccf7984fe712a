"""Maps are scored against bleedings whose place is known, beside maps that know nothing of them."""

import json
import math

import jax
import numpy as np
import pytest

import bhcnet_jax
from bhcnet_jax import explain
from bhcnet_jax.datasets.phantom import drawing
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import localization, model
from bhcnet_jax.inference.localization import CENTRE, MAP, RANDOM

pytestmark = pytest.mark.slow

MASK = np.zeros((1, 4, 4), bool)
MASK[0, 1, 1:3] = True


def map_of(values):
    return np.array(values, float)[None]


@pytest.mark.parametrize(('largest', 'hit'), [([(1, 1)], 1), ([(0, 0)], 0), ([(1, 1), (0, 0)], 0.5), ([], 2 / 16)])
def test_the_pointing_game_is_won_inside_the_mask_and_shared_by_equal_values(largest, hit):
    made = np.zeros((1, 4, 4))
    for place in largest:
        made[(0, *place)] = 1
    np.testing.assert_allclose(localization.pointing_game(made, MASK), [hit])


def test_overlap_is_of_as_many_pixels_as_the_mask_has():
    made = np.arange(16.0).reshape(1, 4, 4)
    assert localization.overlap(made, MASK) == 0
    made[0, 1, 1] = 20
    assert localization.overlap(made, MASK) == pytest.approx(1 / 3)  # one of two, and one that is not in the mask
    made[0, 1, 2] = 19
    assert localization.overlap(made, MASK) == 1


def test_of_equal_values_each_counts_as_a_share():
    flat = localization.overlap(np.zeros((1, 4, 4)), MASK)
    assert flat == pytest.approx((2 * 2 / 16) / (4 - 2 * 2 / 16))
    made = np.zeros((1, 4, 4))
    made[0, 1, 1] = 1  # the other pixel is any of the 15
    common = 1 + 1 / 15
    assert localization.overlap(made, MASK) == pytest.approx(common / (4 - common))


@pytest.mark.parametrize('size', [5, 8])
def test_the_centre_prior_falls_with_the_distance_from_the_middle(size):
    prior = localization.centre_prior(size)
    np.testing.assert_array_equal(prior, prior.T)
    np.testing.assert_array_equal(prior, prior[::-1, ::-1])
    assert (np.diff(prior[size // 2, size // 2 :]) < 0).all()


def test_slices_are_held_out_and_their_masks_lie_on_the_blood(crossed, monkeypatch):
    assert drawing.SEED not in localization.SEEDS
    assert len(localization.SEEDS) * drawing.NUM_SLICES / 2 >= 200
    monkeypatch.setattr(localization, 'SEEDS', (1,))
    monkeypatch.setattr(drawing, 'NUM_SLICES', 20)
    net = bhcnet_jax.load(crossed)
    images, masks = localization.draw(net)
    assert images.shape == masks.shape == (10, 16, 16) and masks.dtype == bool
    for place, (image, mask) in enumerate(zip(images, masks, strict=True)):
        twin = net.preprocess(drawing.draw_slice(2 * place + 1, 1, bleeds=False).image)
        change = np.abs(np.int32(image) - twin)
        if mask.any():
            assert change[mask].mean() > 3 * change[~mask].mean()


def test_a_mask_is_cropped_as_its_equalised_image_is(equalised):
    net, drawn = bhcnet_jax.load(equalised), drawing.draw_slice(1, 1)
    assert net.resolution
    box = localization.images_of_files.head_box(drawn.image)
    mask = np.zeros_like(drawn.mask)
    mask[box[1] : box[3], box[0] : box[2]] = 255  # all of the head's box, so all that the network sees
    assert localization.as_seen(net, drawn.image, mask).all()


def test_random_weights_are_other_weights_of_the_same_networks(crossed):
    net = bhcnet_jax.load(crossed)
    other = localization.untrained(net)
    assert jax.tree.map(np.shape, other.variables) == jax.tree.map(np.shape, dict(net.variables))
    kernel = other.variables['params']['trunk']['conv1']['kernel']
    assert len({each.tobytes() for each in kernel}) == 4  # a network of its own for each member
    assert not np.allclose(kernel, net.variables['params']['trunk']['conv1']['kernel'])


def judged_with(maps, crossed, monkeypatch):
    """What is judged of a model whose maps are a function of masks; of random weights they are 0."""
    monkeypatch.setattr(localization, 'SEEDS', (1,))
    monkeypatch.setattr(drawing, 'NUM_SLICES', 60)
    net = bhcnet_jax.load(crossed)
    images, masks = localization.draw(net)
    mask_of = {image.tobytes(): mask for image, mask in zip(images, masks, strict=True)}

    def explained(self, images, how):
        known = np.stack([mask_of[each.tobytes()] for each in images])
        return maps(known) if self is net else np.zeros(known.shape)

    monkeypatch.setattr(model.Model, 'explain', explained)
    return localization.judge(net, 'grad_cam'), masks.any(axis=(1, 2))


def test_a_perfect_map_wins_all_and_is_better_than_the_controls(crossed, monkeypatch):
    judged, seen = judged_with(lambda masks: masks.astype(float), crossed, monkeypatch)
    assert (judged.slices, judged.left_out) == (seen.sum(), (~seen).sum())
    assert [each.mean for each in judged.scores[MAP].values()] == [1, 1]
    for whose in (CENTRE, RANDOM):
        for name, score in judged.scores[whose].items():
            assert 0 <= score.low < score.mean < score.high < 0.7
            assert judged.gains[whose][name].mean == pytest.approx(1 - score.mean)
    assert all(': better than the ' in line for line in localization.verdict(judged))


@pytest.mark.parametrize('maps', ['centre', 'nothing'])
def test_a_map_that_is_the_centre_prior_or_nothing_is_said_to_be_no_better(maps, crossed, monkeypatch):
    made = {
        'centre': lambda masks: np.broadcast_to(localization.centre_prior(16), masks.shape),
        'nothing': lambda masks: np.zeros(masks.shape),
    }[maps]
    judged, _ = judged_with(made, crossed, monkeypatch)
    lines = [line for line in localization.verdict(judged) if CENTRE in line]
    assert len(lines) == 2 and all('no better than the centre prior' in line for line in lines)


def test_what_is_written_is_read_again_also_where_an_interval_is_undefined(crossed, tmp_path, monkeypatch):
    judged, _ = judged_with(lambda masks: masks.astype(float), crossed, monkeypatch)
    assert math.isnan(judged.scores[MAP]['IoU'].low)  # all slices have the same value
    path = localization.write(judged, tmp_path)
    assert json.loads(path.read_text())['scores'][MAP]['IoU'] == [1.0, None, None]
    (again,) = localization.read(tmp_path)
    assert again._replace(scores={}, gains={}) == judged._replace(scores={}, gains={})
    for part in ('scores', 'gains'):
        for whose, found in getattr(judged, part).items():
            for name, each in found.items():
                np.testing.assert_array_equal(getattr(again, part)[whose][name][:3], each[:3])
    path.write_text('{')
    with pytest.raises(UserError, match='cannot be read'):
        localization.read(tmp_path)


def test_the_command_prints_three_rows_and_leaves_them_for_the_report(crossed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(localization, 'SEEDS', (1,))
    monkeypatch.setattr(drawing, 'NUM_SLICES', 20)
    explain.main([str(crossed), '--trials=seed=0 fold=0', f'--out={tmp_path}'])
    said = capsys.readouterr().out
    assert said.startswith('PHANTOM: n = ') and 'one network trained on heads' in said
    assert [line.split('  ')[0] for line in said.splitlines()[2:6]] == ['hires_cam', MAP, RANDOM, CENTRE]
    (judged,) = localization.read(tmp_path)
    assert f'{judged.scores[CENTRE]["IoU"].mean:.3f}' in said
    assert 'nan' not in said.partition('Pointing game')[0]  # no interval where all slices have the same value
    assert len(judged.trials) == 1 and judged.how == 'hires_cam'


def test_mistakes_are_one_line(crossed, tmp_path, refusal):
    mistakes = {'no such directory': [tmp_path / 'missing'], 'fits none': [crossed, '--trials=seed=9']}
    for message, arguments in mistakes.items():
        assert message in refusal(explain.main, [str(each) for each in arguments])
