import numpy as np
import pytest

from bhcnet_jax.configs import base
from bhcnet_jax.plan import phases
from bhcnet_jax.training.steps import TrainState
from lanes import small_config


def paper_plan(**overrides):
    """The paper's numbers: 200 images, 90 + 90 of them for training."""
    config = base.get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in overrides.items()})
    labels = (np.arange(200) % 2).astype(np.int32)
    return phases.plan(config, labels, np.arange(180)), labels


def test_phase_one_makes_1000_images_from_90_and_90():
    (balanced, _), labels = paper_plan()
    assert balanced.counts == (90, 90)
    assert (balanced.sources.shape, balanced.sources.dtype) == ((1000,), np.int32)
    times = np.bincount(balanced.sources, minlength=200)
    assert set(times[:180]) == {5, 6}
    assert not times[180:].any()  # no test image
    assert labels[balanced.sources].sum() == 500


def test_phase_two_makes_1000_images_from_243_with_63_hemorrhages_drawn_again():
    (_, imbalanced), labels = paper_plan()
    assert imbalanced.counts == (90, 153)
    times = np.bincount(imbalanced.sources, minlength=200)
    assert not times[180:].any()
    hemorrhages = times[:180][labels[:180] == 1]
    assert labels[imbalanced.sources].sum() == round(1000 * 153 / 243)
    # 630 images from a pool of 153: an image in it once is used 4 or 5 times, one in it twice 8 to 10 times.
    assert np.sum(hemorrhages >= 8) == 63
    assert np.sum(hemorrhages <= 5) == 27
    assert set(times[:180][labels[:180] == 0]) <= {4, 5}


def test_a_smaller_class_is_drawn_again_to_balance():
    labels = np.array([0] * 9 + [1] * 3)
    plan = phases.plan(small_config(phases=('balanced',), augment__samples=18), labels, np.arange(12))
    assert plan[0].counts == (9, 9)
    np.testing.assert_array_equal(np.bincount(plan[0].sources), [1] * 9 + [3] * 3)


def test_two_seeds_draw_other_hemorrhages_again():
    sources = [paper_plan(seed=seed)[0][1].sources for seed in (0, 1, 0)]
    assert not np.array_equal(np.bincount(sources[0]), np.bincount(sources[1]))
    np.testing.assert_array_equal(sources[0], sources[2])


def test_fewer_positives_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r'imbalanced.positives is 80, but the training part has 90 positives'):
        paper_plan(imbalanced__positives=80)


@pytest.mark.parametrize('counts', [(2500, 2500), (4200, 800), (900, 100)])
@pytest.mark.parametrize('name', phases.NAMES)
def test_fresh_augmentation_uses_every_training_image_over_the_epochs(counts, name):
    config = small_config(phases=(name,), augment__samples=1000, augment__frozen=False, imbalanced__epochs=24)
    labels = np.repeat([0, 1], counts)
    (phase,) = phases.plan(config, labels, np.arange(len(labels)))
    epochs = [phase.sources_of(epoch) for epoch in range(24)]
    assert {(sources.shape, sources.dtype.name) for sources in epochs} == {((1000,), 'int32')}
    np.testing.assert_array_equal(np.concatenate(epochs), phase.sources)
    assert len({int(np.sum(labels[sources])) for sources in epochs}) == 1  # the same proportion in each
    times = np.bincount(phase.sources, minlength=len(labels))
    for label, pool, share in zip((0, 1), phase.pools, phase.shares, strict=True):
        passes = 24 * share / len(pool)  # in each an image is used as often as the pool has it, which differs by one
        assert times[labels == label].min() > 0
        assert np.ptp(times[labels == label]) <= passes + 1
    assert phase.used == len(labels)


def test_an_enlarged_set_has_the_same_images_in_every_epoch():
    for frozen, samples in ((True, 100), (False, 180)):  # frozen, or with room for all
        (phase, _), _ = paper_plan(augment__frozen=frozen, augment__samples=samples)
        np.testing.assert_array_equal(phase.sources, phase.sources_of(7))
        assert (len(phase.sources), phase.used) == (samples, samples)


def test_zero_samples_are_all_training_images_in_every_epoch_of_both_phases():
    for frozen in (True, False):
        planned, _ = paper_plan(augment__samples=0, augment__frozen=frozen)
        assert [phase.samples for phase in planned] == [256, 256]  # 90 + 153, in whole steps of 32
        assert [phase.used for phase in planned] == [180, 180]
        assert all(set(phase.sources_of(0)) == set(range(180)) for phase in planned)


@pytest.mark.parametrize(('normal', 'positive', 'samples', 'name'), [
    (3, 600, 64, 'imbalanced'), (600, 3, 64, 'imbalanced'), (1, 600, 2, 'imbalanced'), (10, 10, 2, 'balanced'),
])
def test_no_phase_lacks_a_class(normal, positive, samples, name):
    config = small_config(phases=(name,), augment__samples=samples, imbalanced__positives=positive)
    labels = np.repeat([0, 1], [normal, positive])
    (phase,) = phases.plan(config, labels, np.arange(len(labels)))
    assert len(phase.sources) == samples
    assert set(labels[phase.sources]) == {0, 1}


def test_the_papers_153_is_a_share_on_another_set():
    labels = np.repeat([0, 1], [20, 10])
    config = base.get_config()
    train = np.r_[0:18, 20:29]
    assert phases.plan(config, labels, train)[1].counts == (18, round(1.7 * 9))
    config.imbalanced.positives = 12  # any other number is that number
    assert phases.plan(config, labels, train)[1].counts == (18, 12)


def test_the_papers_153_is_that_number_on_every_split_of_its_set():
    labels = (np.arange(200) % 2).astype(np.int32)
    for size in (120, 144, 180):
        assert phases.plan(base.get_config(), labels, np.arange(size))[1].counts == (size // 2, 153)


def unlabelled_plan(labels, **overrides):
    config = small_config(model__name='autoencoder', phases=('autoencoder', 'balanced', 'imbalanced'), **overrides)
    return phases.plan(config, labels, np.arange(180))[0]


@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('samples', [100, 1000])
def test_the_phase_without_labels_has_the_same_images_whatever_they_are(samples, frozen):
    labels = (np.arange(200) % 2).astype(np.int32)
    settings = {'augment__samples': samples, 'augment__frozen': frozen, 'autoencoder__epochs': 9}
    phase = unlabelled_plan(labels, **settings)
    for others in (1 - labels, np.random.default_rng(0).permutation(labels)):
        np.testing.assert_array_equal(phase.sources, unlabelled_plan(others, **settings).sources)
    epochs = [phase.sources_of(epoch) for epoch in range(9)]
    assert {len(sources) for sources in epochs} == {samples}
    times = np.bincount(np.concatenate(epochs), minlength=200)
    assert not times[180:].any()  # no test image
    is_fresh = samples < 180 and not frozen
    assert phase.used == np.count_nonzero(times) == (min(180, samples) if not is_fresh else 180)
    assert np.ptp(times[times > 0]) <= (1 if is_fresh else 9)


@pytest.mark.parametrize(('epochs', 'parts'), [(9, (3, 3, 3)), (10, (4, 3, 3)), (11, (4, 4, 3)), (3, (1, 1, 1))])
def test_layers_learn_one_after_the_other_in_equal_shares_of_the_epochs(epochs, parts):
    phase = unlabelled_plan((np.arange(200) % 2).astype(np.int32), autoencoder__epochs=epochs)
    assert phase.parts == parts
    layers = [phase.layer_of(epoch) for epoch in range(epochs)]
    assert layers == [1] * parts[0] + [2] * parts[1] + [3] * parts[2]
    first = [epoch for epoch in range(epochs) if phase.begins_layer(epoch)]
    assert first == [0, parts[0], parts[0] + parts[1]]


def test_all_layers_learn_together_in_the_other_phases():
    (phase, _), _ = paper_plan()
    assert phase.parts == (24,)
    assert not any(phase.layer_of(epoch) or phase.begins_layer(epoch) for epoch in range(24))


def test_class_weights_make_both_classes_weigh_the_same():
    np.testing.assert_allclose(phases.class_weights((90, 90)), [1, 1])
    weights = phases.class_weights((90, 153))
    np.testing.assert_allclose(weights, [243 / 180, 243 / 306])
    assert weights[0] * 90 == pytest.approx(weights[1] * 153)


@pytest.mark.parametrize('weights', ['carried', 'computed'])
@pytest.mark.parametrize('optimizer', ['carried', 'fresh'])
def test_what_a_phase_hands_over(weights, optimizer):
    config = small_config(imbalanced__class_weights=weights, imbalanced__optimizer_state=optimizer)
    state = TrainState(
        params={'kernel': np.array([[2.0]])},
        opt_state={'count': np.array([7]), 'mu': np.array([[0.5]])},
        batch_stats={'mean': np.array([[3.0]])},
        average={'params': {'kernel': np.array([[4.0]])}},
    )
    before = {'state': state, 'class_weights': np.array([[1.0, 1.0]])}
    begun = phases.begin(config, 'imbalanced', np.array([[1.35, 0.79]]), before)
    np.testing.assert_array_equal(begun['state'].params['kernel'], [[2.0]])
    np.testing.assert_array_equal(begun['state'].batch_stats['mean'], [[3.0]])
    np.testing.assert_array_equal(begun['state'].average['params']['kernel'], [[4.0]])
    np.testing.assert_array_equal(begun['state'].opt_state['count'], [7 if optimizer == 'carried' else 0])
    np.testing.assert_array_equal(begun['state'].opt_state['mu'], [[0.5 if optimizer == 'carried' else 0]])
    np.testing.assert_array_equal(begun['class_weights'], [[1.0, 1.0] if weights == 'carried' else [1.35, 0.79]])


def test_the_papers_reading_is_the_default():
    section = base.get_config().imbalanced
    assert (section.positives, section.class_weights, section.optimizer_state) == (153, 'carried', 'fresh')
