import hashlib
import itertools
import random
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from flax import traverse_util

from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import sweep, trial
from bhcnet_jax.plan.sweep import Axis

LEAVES = traverse_util.flatten_dict(base.get_config().to_dict(), sep='.')
FIXED = {'recipe', 'sweep', 'trials', *(f'dataset.{key}' for key in ('name', 'dir', 'label', 'columns', 'positive'))}
FIXED |= {'model.weights'}
FIXED &= set(LEAVES)
FIXED |= {key for key in LEAVES if key.startswith('engine.')}


def parse(text):
    return sweep.parse(text, base.get_config())


def values(text):
    """The values of a sweep over one key."""
    (axis,) = parse(text)
    return [value for (value,) in axis.values]


def ids(count):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('seed=7', [7]),
        ('seed=0:4', [0, 1, 2, 3]),
        ('seed=0:12:5', [0, 5, 10]),
        ('seed=5:2:-1', [5, 4, 3]),
        ('seed=0:3,10,20:22', [0, 1, 2, 10, 20, 21]),
        ('balanced.epochs=4,8,12', [4, 8, 12]),
        ('model.name=cnn,cnn_gru', ['cnn', 'cnn_gru']),
        ("model.name='cnn'", ['cnn']),
        ('augment.frozen=True,False', [True, False]),
        ('model.filters=(16,32,64),(32, 64, 128)', [(16, 32, 64), (32, 64, 128)]),
        ('model.filters=[8]', [(8,)]),
        ("phases=('balanced',),('balanced','imbalanced')", [('balanced',), ('balanced', 'imbalanced')]),
        ('model.dropout=0,0.25,1e-1', [0.0, 0.25, 0.1]),
        ('optimizer.peak_lr=log(1e-4,1e-2,5)', [1e-4, 0.000316227766017, 1e-3, 0.00316227766017, 1e-2]),
        ('optimizer.peak_lr=1e-5,log(1e-4, 1e-2, 3)', [1e-5, 1e-4, 1e-3, 1e-2]),
        ('batch_size=log(8,64,4)', [8, 16, 32, 64]),
        ('balanced.epochs=lin(24,4,6)', [24, 20, 16, 12, 8, 4]),
        ('augment.affine.shear=lin(-1,2,4)', [-1.0, 0.0, 1.0, 2.0]),
    ],
)
def test_an_axis_has_the_values_that_its_text_says(text, expected):
    found = values(text)
    assert found == expected
    kind = type(LEAVES[text.partition('=')[0]])
    assert {type(value) for value in found} == {kind}


def test_log_and_lin_agree_with_numpy():
    logarithmic = values('optimizer.peak_lr=log(3e-5,0.7,40)')
    linear = values('model.dropout=lin(0.07,0.9,40)')
    np.testing.assert_allclose(logarithmic, np.geomspace(3e-5, 0.7, 40), rtol=1e-11)
    np.testing.assert_allclose(linear, np.linspace(0.07, 0.9, 40), rtol=1e-11)


def test_draws_are_the_same_for_ever():
    expected = [0.0215415706931, 0.000332931277435, 0.341839141057]
    assert values('model.dropout=loguniform(1e-4,1,3,7)') == expected
    assert values('model.dropout=uniform(0,1,3,7)') == [0.583319341622, 0.130588649284, 0.883455447139]


def test_draws_are_uniform_and_loguniform():
    uniform = np.array(values('model.dropout=uniform(0.2,0.6,2000,1)'))
    assert scipy.stats.kstest(uniform, scipy.stats.uniform(0.2, 0.4).cdf).pvalue > 0.01
    logarithmic = np.array(values('optimizer.peak_lr=loguniform(1e-4,1e-2,2000,1)'))
    assert scipy.stats.kstest(logarithmic, scipy.stats.loguniform(1e-4, 1e-2).cdf).pvalue > 0.01


def test_more_draws_keep_those_before():
    text = 'model.dropout=uniform(0,0.9,{},3)'
    assert values(text.format(80))[:50] == values(text.format(50))


def test_two_seeds_and_two_keys_draw_different_numbers():
    draws = [
        values(f'{key}=uniform(0,0.9,200,{seed})')
        for key, seed in itertools.product(('model.dropout', 'augment.affine.zoom'), (0, 1))
    ]
    for one, other in itertools.combinations(draws, 2):
        assert not set(one) & set(other)
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(200)


@pytest.mark.parametrize(
    'call', ['log(1e-4,1e-2,97)', 'lin(0,0.3,97)', 'loguniform(1e-5,1,97,0)', 'uniform(0,1,97,0)']
)
def test_computed_numbers_have_at_most_twelve_digits_and_read_back_as_they_were(call):
    for value in values(f'optimizer.peak_lr={call}'):
        assert value == float(f'{value:.12g}')
        assert values(f'optimizer.peak_lr={value!r}') == [value]


def test_written_numbers_are_not_rounded_and_minus_zero_is_zero():
    assert values('model.dropout=0.12345678901234567') == [0.12345678901234567]
    assert repr(values('optimizer.weight_decay=-0.0')) == '[0.0]'


def test_zipped_keys_are_one_axis():
    assert parse('zip(balanced.epochs=4,8,12 imbalanced.epochs=2,4,4) seed=0:2') == (
        Axis(('balanced.epochs', 'imbalanced.epochs'), ((4, 2), (8, 4), (12, 4))),
        Axis(('seed',), ((0,), (1,))),
    )


def test_line_breaks_and_spaces_separate_axes():
    assert parse('\n  seed=0:2\n\tsplit.fold=0:3  ') == parse('seed=0:2 split.fold=0:3')


def test_points_are_the_product_with_the_last_axis_fastest():
    axes = parse('seed=0:3 zip(balanced.epochs=4,8 imbalanced.epochs=2,4) model.name=cnn,cnn_gru')
    expected = [
        {'seed': seed, 'balanced.epochs': epochs, 'imbalanced.epochs': epochs // 2, 'model.name': name}
        for seed in range(3)
        for epochs in (4, 8)
        for name in ('cnn', 'cnn_gru')
    ]
    assert list(sweep.points(axes)) == expected
    assert sweep.count(axes) == len(expected)


def test_no_axes_are_one_plain_run():
    assert parse(' ') == ()
    assert list(sweep.points(())) == [{}]
    assert sweep.count(()) == 1


def test_points_set_a_config_that_can_be_run():
    text = "phases=('balanced',) model.filters=(4,8) model.dropout=0,0.5 augment.frozen=False"
    for point in sweep.points(parse(text)):
        config = base.get_config()
        config.update_from_flattened_dict(point)
        trial.check(config)
        assert traverse_util.flatten_dict(config.to_dict(), sep='.') == {**LEAVES, **point}


@pytest.mark.parametrize('key', sorted(set(LEAVES) - FIXED))
def test_every_key_of_a_recipe_can_be_swept_over_its_own_value(key):
    assert values(f'{key}={LEAVES[key]!r}'.replace(', ', ',')) == [LEAVES[key]]


@pytest.mark.parametrize('key', sorted(FIXED))
def test_a_key_that_belongs_to_no_recipe_cannot_be_swept(key):
    with pytest.raises(UserError, match=f'{key} belongs to no recipe and cannot be swept; set it once'):
        parse(f'{key}={LEAVES[key]!r}')


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        others = {'affine': 'none', 'distort': 'none', 'affine+intensity': 'none', 'cnn_gru': 'cnn_lstm'}
        return others.get(value, f'{value}_')
    return value[::-1] if isinstance(value, tuple) else value + 1


def changes_the_recipe(key):
    """Whether another value of the key makes another recipe, with any policy and order of phases."""
    turned = {'augment.policy': 'distort', 'phases': ('imbalanced', 'balanced')}
    drawn = {'augment.policy': 'affine+intensity', 'phases': ('phantom', 'balanced')}
    unlabelled = {'model.name': 'autoencoder', 'phases': ('autoencoder', 'balanced')}
    published = ({'model.name': name} for name in ('alexnet', 'googlenet', 'resnet18'))
    for setting in ({'model.name': 'cnn_gru'}, turned, drawn, unlabelled, *published):
        config, changed = base.get_config(), base.get_config()
        config.update_from_flattened_dict(setting)
        changed.update_from_flattened_dict({**setting, key: other({**LEAVES, **setting}[key])})
        if trial.resolve(config) != trial.resolve(changed):
            return True
    return False


def test_what_cannot_be_swept_is_what_changes_no_recipe():
    assert {key for key in LEAVES if not changes_the_recipe(key)} == FIXED | {'seed', 'split.fold'}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('optimizer.peaklr=1', r"part 'optimizer.peaklr=1': no key .*; did you mean optimizer.peak_lr\?"),
        ('epochs=4', r'did you mean autoencoder.epochs or balanced.epochs or imbalanced.epochs or phantom.epochs\?'),
        ('qqqq=4', r'every key is in configs/base.py'),
        ('seed.x=1', r"no key 'seed.x'"),
        ('balanced=4', r'balanced is a section; sweep one of its keys: .*balanced.epochs'),
        ('augment.affine=4', r'augment.affine is a section; .*augment.affine.zoom'),
        ('engine=4', r'engine belongs to no recipe'),
        ('sweep=4', r'sweep belongs to no recipe'),
        ('trials=4', r'trials belongs to no recipe'),
        ('seed=', r'no values for seed; expected some, like seed=0'),
        ('seed=0:0', r'0:0 is empty; expected a range with values'),
        ('seed=3:0', r'3:0 is empty'),
        ('zip()', r'empty; expected axes'),
        ('model.dropout=uniform(0,1,0,1)', r'has n=0; expected 1 to'),
        ('model.dropout=lin(0,1,1)', r'has n=1; expected 2 to'),
        ('seed=1,2 split.fold=0 seed=3', r'seed is in 2 axes'),
        ('zip(seed=1,2 split.seed=1,2) seed=3', r'seed is in 2 axes'),
        ('zip(seed=1,2 seed=3,4)', r'seed is in 2 axes'),
        ('zip(seed=0:3 split.seed=0:2)', r'zipped axes of 3, 2 values'),
        ('zip(zip(seed=1))', r'expected key=values'),
        ('seed=1,2,1', r"part 'seed=1,2,1': 1 comes twice"),
        ('seed=0:5,4', r'4 comes twice'),
        ('model.dropout=0,0.0', r'0.0 comes twice'),
        ('zip(seed=1,1 split.seed=2,2)', r'\(1, 2\) comes twice'),
        ('model.dropout=lin(1,1,2)', r'1.0 comes twice'),
        ('seed=1.0', r'seed is 1.0; expected a whole number, like 0'),
        ('seed=True', r'seed is True; expected a whole number'),
        ('balanced.epochs=lin(4,8,4)', r'balanced.epochs is 5.3+; expected a whole number, like 24'),
        ('model.dropout=high', r"'high' is no value of model.dropout; .*number, like 0.5 or start:end"),
        ('model.dropout=nan', r"'nan' is no value"),
        ('model.dropout=1e999', r'model.dropout is inf; expected a finite number'),
        ('model.dropout=' + '9' * 400, r'expected a finite number'),
        ('augment.frozen=1', r'augment.frozen is 1; expected True or False'),
        ('model.name=log(1,2,2)', r"model.name is 1; expected a name, like 'cnn'"),
        ('model.filters=32,64', r'model.filters is 32; expected a tuple, like \(32, 64, 128\)'),
        ('model.filters=(32)', r'model.filters is 32; expected a tuple'),
        ('model.filters=(32.0,)', r'model.filters is 32.0; expected a whole number'),
        ('phases=(balanced,)', r"'\(balanced,\)' is no value of phases; expected a tuple"),
        ('seed', r"found 'seed'; expected key=values"),
        ('seed = 1', r"part 'seed': found 'seed'"),
        ('=1', r"found '=1'"),
        ('seed=1, 2', r"part 'seed=1,': an empty value for seed"),
        ('seed=0:', r"found '0:'; expected start:end"),
        ('seed=0:9:0', r"found '0:9:0'; expected start:end"),
        ('seed=0:10000000', r'has more than 1,000,000 values'),
        ('seed=(1', r"a bracket is not closed: '\(1'"),
        ('seed=1)', r"a bracket was not opened: 'seed=1\)'"),
        ("model.name='cnn", r'a quote is not closed: "\'cnn"'),
        ('model.dropout=lin(0,1)', r"'lin\(0,1\)' has 2 arguments; expected lin\(a,b,n\)"),
        ('model.dropout=lin(0,x,3)', r"'x' in lin\(a,b,n\); expected a finite number"),
        ('model.dropout=lin(0,inf,3)', r"'inf' in lin\(a,b,n\); expected a finite number"),
        ('model.dropout=lin(0,1,2.5)', r"'2.5' in lin\(a,b,n\); expected a whole number from 0"),
        ('model.dropout=uniform(0,1,3)', r'has 3 arguments; expected uniform\(a,b,n,seed\)'),
        ('model.dropout=uniform(0,1,3,-1)', r"'-1' in uniform\(a,b,n,seed\); expected a whole number from 0"),
        ('model.dropout=uniform(1,0,3,1)', r'draws from 1 to 0; expected the smaller end first'),
        ('optimizer.peak_lr=log(0,1,3)', r'reaches 0; expected ends above 0'),
        ('optimizer.peak_lr=loguniform(-1,1,3,1)', r'reaches -1; expected ends above 0'),
        ("seed=__import__('os').getpid()", r'is no value of seed; expected a whole number'),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line_that_says_where(text, message):
    with pytest.raises(UserError, match=message) as refusal:
        parse(text)
    assert len(str(refusal.value).splitlines()) == 1


def test_garbled_text_gives_a_short_error_or_axes_and_nothing_else():
    texts = (
        'zip(balanced.epochs=4,8 imbalanced.epochs=2,4) seed=0:9:2',
        "phases=('balanced',),('balanced','imbalanced') model.filters=(16,32),(8,)",
        'optimizer.peak_lr=log(1e-4,1e-2,5) model.dropout=uniform(0,0.5,4,1)',
    )
    garbage = '()[]{},:=\'"-.e \n\\#\0\u2028'
    generator = random.Random(0)
    refused = 0
    for _ in range(3000):
        text = list(generator.choice(texts))
        for _ in range(generator.randint(1, 4)):
            text[generator.randrange(len(text))] = generator.choice(['', *garbage])
        try:
            parse(''.join(text))
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < 500
    assert 0 < refused < 3000


def test_explicit_points_are_checked_and_converted():
    points = [
        {'seed': np.int64(1), 'optimizer.peak_lr': np.float64(0.1)},
        {'seed': 1, 'model.dropout': 0},
        {'model.filters': [4, 8]},
        {},
    ]
    checked = sweep.check_points(points, base.get_config())
    expected = (
        {'seed': 1, 'optimizer.peak_lr': 0.1},
        {'seed': 1, 'model.dropout': 0.0},
        {'model.filters': (4, 8)},
        {},
    )
    assert repr(checked) == repr(expected)  # the types too: 0 as 0.0, nothing of numpy


def test_points_of_a_sweep_pass_as_explicit_points():
    axes = parse('seed=0:3 optimizer.peak_lr=log(1e-4,1e-2,3) model.filters=(4,8),(8,16)')
    points = tuple(sweep.points(axes))
    assert sweep.check_points(points, base.get_config()) == points


@pytest.mark.parametrize(
    ('points', 'message'),
    [
        ([], r'config.trials is empty'),
        ([{}, {'seeds': 1}], r"config.trials\[1\]: no key 'seeds'; did you mean seed\?"),
        ([{'seed': 1.5}], r'config.trials\[0\]: seed is 1.5; expected a whole number'),
        ([{'seed': '1'}], r"seed is '1'; expected a whole number"),
        ([{'model.name': 1}], r'model.name is 1; expected a name'),
        ([{'model.dropout': float('nan')}], r'model.dropout is nan; expected a finite number'),
        ([{'optimizer': {'peak_lr': 1.0}}], r'optimizer is a section'),
        ([{'engine.lanes': 2}], r'engine.lanes belongs to no recipe'),
        ([{1: 2}], r'no key 1;'),
        ([{'seed': 1, 'batch_size': 8}, {}, {'batch_size': 8, 'seed': 1}], r'\[2\]: the same as .*\[0\]'),
        ({'seed': 1}, r"found 'seed'; expected a dict"),
    ],
)
def test_bad_explicit_points_are_refused_with_their_place(points, message):
    with pytest.raises(UserError, match=message) as refusal:
        sweep.check_points(points, base.get_config())
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('count', [1, 2, 3, 7, 64])
def test_every_trial_is_in_exactly_one_shard(count):
    shards = [sweep.parse_shard(f'{index}/{count}') for index in range(1, count + 1)]
    assert all(sum(shard.takes(trial_id) for shard in shards) == 1 for trial_id in ids(500))


def test_shards_are_of_about_equal_size():
    sizes = [sum(map(sweep.parse_shard(f'{index}/7').takes, ids(10_000))) for index in range(1, 8)]
    sigma = np.sqrt(10_000 * 1 / 7 * 6 / 7)
    np.testing.assert_allclose(sizes, 10_000 / 7, atol=5 * sigma)


def test_a_trial_keeps_its_shard_for_ever():
    second = sweep.parse_shard('2/3')
    found = [trial_id for trial_id in ('00', '01', '02', '03', '04', '0a', 'ff') if second.takes(trial_id)]
    assert found == ['01', '04', '0a']


@pytest.mark.parametrize(
    'text', ['9/8', '0/8', '1/0', '-1/8', '1', '1/2/3', 'a/b', '', '1.0/2', ' 1/2', '1/2\n', '²/3']
)
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(UserError, match=r'^Shard .*: expected i/n with i from 1 to n, as in 1/8\.$'):
        sweep.parse_shard(text)


def test_a_hundred_thousand_points_take_little_memory():
    tracemalloc.start()
    points = list(sweep.points(parse('seed=0:100000')))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(points) == 100_000
    assert peak < 100e6


@pytest.mark.parametrize(
    'text',
    [
        'seed=0:1000000 split.seed=0:1000000',
        'seed=0:1001 split.seed=0:1000',
        'seed=0:1000000,1000000:2000000',
        'optimizer.peak_lr=log(1e-4,1e-2,1000000) model.dropout=uniform(0,0.5,1000000,3)',
        'zip(optimizer.peak_lr=lin(1e-4,1e-2,1000000) seed=0:1000000) split.seed=0,1',
    ],
)
def test_a_sweep_of_too_many_points_is_refused_before_its_values_are_made(text):
    parse('seed=0:2')  # what is made once
    tracemalloc.start()
    with pytest.raises(UserError, match='points; expected at most 1,000,000'):
        parse(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_a_sweep_of_as_many_points_as_can_be_is_not_refused():
    assert sweep.count(parse('seed=0:1000 split.seed=0:1000')) == sweep.MAX_POINTS
