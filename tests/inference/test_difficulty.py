"""Detection against difficulty: held-out drawn heads, and what is counted on them."""

import itertools
import json

import jax
import numpy as np
import pytest

import bhcnet_jax
import simple_heads
from bhcnet_jax import difficulty as command
from bhcnet_jax.datasets.phantom import distractors
from bhcnet_jax.datasets.phantom import heads as drawn_heads
from bhcnet_jax.inference import difficulty
from bhcnet_jax.inference.model import Model
from bhcnet_jax.training import steps

pytestmark = pytest.mark.slow

COUNT = 200


@pytest.fixture(scope='module', autouse=True)
def _simple_heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, 'draw', simple_heads.draw)
        yield


@pytest.fixture(scope='module')
def net(crossed):
    return bhcnet_jax.load(crossed)


@pytest.fixture(scope='module')
def drawn(net):
    return difficulty.draw(net, COUNT)


@pytest.fixture
def reader(drawn, monkeypatch):
    """Has every model call the heads positive that a function of their places chooses, and outline given masks."""

    def reads(positive, outlines=None):
        answer = Model.answer

        def read(self, images):
            return answer(self, images)._replace(positive=np.asarray(positive))

        monkeypatch.setattr(Model, 'answer', read)
        if outlines is not None:
            monkeypatch.setattr(Model, 'has_mask_head', True)
            monkeypatch.setattr(Model, 'segment', lambda self, images: np.float32(outlines))

    return reads


def test_a_perfect_reader_has_full_marks_and_a_blind_one_none(net, drawn, reader):
    bleeds = drawn.kinds > 0
    reader(bleeds, drawn.masks)
    found = difficulty.judge(net, COUNT)
    assert found.sensitivity == (bleeds.sum(), bleeds.sum()) and found.specificity['all'].value == 1
    assert found.dice['all'].mean == 1 and found.contoured.value == 1
    reader(~bleeds, ~drawn.masks)
    found = difficulty.judge(net, COUNT)
    assert found.sensitivity.value == found.specificity['all'].value == found.dice['all'].mean == 0
    assert found.contoured.value == 0


def test_small_bleedings_that_are_missed_lower_the_sensitivity_of_the_small_alone(net, drawn, reader):
    bleeds = drawn.kinds > 0
    limit = np.quantile(drawn.area[bleeds], 0.5)
    reader(drawn.area > limit)
    bins = difficulty.judge(net, COUNT).area
    assert [each.rate.value for each in bins[:3]] == [0, 0, 0] and [each.rate.value for each in bins[-3:]] == [1, 1, 1]
    assert sum(each.n for each in bins) == bleeds.sum() and len(bins) == difficulty.BINS
    assert all(each.low <= each.middle <= each.high for each in bins)
    assert all(one.high <= other.low for one, other in itertools.pairwise(bins))


def test_specificity_is_that_of_heads_without_blood_that_have_the_distractor(net, drawn, reader):
    reader(drawn.distractors['drain'])
    found = difficulty.judge(net, COUNT).specificity
    quiet = drawn.kinds == 0
    assert found['drain'] == (0, (drawn.distractors['drain'] & quiet).sum())
    assert found['all'].n == quiet.sum() and found['all'].hits == (quiet & ~drawn.distractors['drain']).sum()
    assert list(found) == ['all', *distractors.CHANCES] == ['all', *difficulty.DISTRACTORS]


def test_dice_counts_common_pixels_twice_over_both():
    found, masks = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    masks[:, 0] = True
    found[0, 0, :2] = found[0, 1, :2] = True
    np.testing.assert_allclose(difficulty.dice(found, masks), [2 * 2 / 8, 0])


def test_heads_are_the_same_for_two_models_and_none_of_a_training(net, equalised, drawn):
    np.testing.assert_array_equal(difficulty.draw(net, 50).images, drawn.images[:50])
    cropped = difficulty.draw(bhcnet_jax.load(equalised), 50)
    assert cropped.images.shape == (50, 16, 16) and (cropped.images != drawn.images[:50]).any()
    np.testing.assert_array_equal(cropped.kinds, drawn.kinds[:50])
    keys = [steps.stream(seed, 'phantom', 0, 0, place) for seed in range(3) for place in range(100)]
    trained_on = {np.asarray(simple_heads.draw(key, 16).image).tobytes() for key in keys}
    assert not trained_on & {each.tobytes() for each in drawn.images}


def test_a_real_drawing_has_its_area_in_square_millimetres():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, 'draw', lambda key, size: drawn_heads.picture(drawn_heads.numbers(key, size), size))
        keys = jax.random.split(jax.random.key(3), 24)
        head, area, others = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: difficulty._one(key, 32)))(keys))
        thickness = [drawn_heads.numbers(key, 32)['scan']['thickness'] for key in keys]
    assert 5 < head.label.sum() < 20 and set(others) == {*distractors.CHANCES}
    np.testing.assert_array_equal(area > drawn_heads.MIN_AREA - 1e-3, head.label == 1)
    assert (area < 8000).all()  # a head's section has some 18 000
    np.testing.assert_allclose(area * np.array(thickness), 1000 * head.volume, rtol=1e-5)


def test_what_is_written_is_read_again(net, drawn, reader, tmp_path):
    reader(drawn.kinds > 0, drawn.masks)
    found = difficulty.judge(net, COUNT)
    assert difficulty.read(difficulty.write(found, tmp_path).parent) == found
    assert difficulty.read(tmp_path / 'elsewhere') is None


def test_the_command_writes_into_the_run_and_prints_each_number_with_its_n(crossed, tmp_path, capsys, refusal):
    command.main([str(crossed), '--heads=100', f'--out={tmp_path}'])
    told = capsys.readouterr().out
    found = difficulty.read(tmp_path)
    assert 'PHANTOM: 100 drawn heads' in told and str(found.specificity['all'].n) in told and 'scalp' in told
    assert found.dice == {} and found.contoured is None and 'Dice' not in told
    assert 'expected at least 100' in refusal(command.main, [str(crossed), '--heads=9'])
    (tmp_path / 'difficulty.json').write_text(json.dumps({'recipe': 'x'}))
    with pytest.raises(ValueError, match='difficulty again'):
        difficulty.read(tmp_path)
