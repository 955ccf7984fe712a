"""What launch/bench/benchmark.py compares is comparable, and what it counts is right."""

import importlib
import importlib.util
import json
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import runs
from bhcnet_jax import models
from bhcnet_jax.configs import base, zoo
from bhcnet_jax.training import augment

pytestmark = pytest.mark.slow

TINY = {'model.filters': (2, 3, 4), 'batch_size': 8, 'augment.samples': 16}
STRENGTHS = base.get_config().augment.affine.to_dict()
NETWORKS = ('strong', *(keys['model.name'] for keys in zoo.NETWORKS))


@pytest.fixture(scope='module', autouse=True)
def launch_folder():
    """The benchmark's modules are in no package."""
    sys.path.insert(0, folder := str(pathlib.Path(__file__).parents[2] / 'launch' / 'bench'))
    yield
    sys.path.remove(folder)


@pytest.fixture
def contest():
    return importlib.import_module('contest')


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    """Folder of a tiny task, as measure_cpu lays it out."""
    folder = tmp_path_factory.mktemp('task')
    image_set = importlib.import_module('benchmark').random_images(40, 16)
    importlib.import_module('contest').prepare(folder / 'try', image_set.images, image_set.labels, **TINY)
    return folder


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is missing: pip install 'bhcnet_jax[bench]'"
    )


def test_whole_commands_are_measured_cold_and_warm(labelled_folder, tmp_path):
    startup = importlib.import_module('startup')
    config, *tiny = runs.flags(labelled_folder, tmp_path)
    tiny = [config, *(flag for flag in tiny if not flag.startswith('--workdir')), "--config.phases=('balanced',)"]
    commands = {'one': tuple(tiny), 'two': (*tiny, '--sweep=seed=0:2')}
    found = startup.measure_commands(tmp_path, commands)['seconds from the start']
    assert list(found) == ['one, cold', 'one, warm', 'two, cold', 'two, warm']
    for name, seconds in found.items():
        assert list(seconds) == ['data line', 'first epoch', 'answer', 'end', 'training'], name
        passed = [seconds[moment] for moment in ('data line', 'first epoch', 'answer', 'end')]
        assert passed == sorted(passed) and passed[0] > 0 and seconds['training'] > 0
    assert (tmp_path / '0/warm/results.csv').exists() and list((tmp_path / '0/cache/bhcnet_jax/compiled').iterdir())


def test_records_are_measured_to_the_end(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    benchmark = importlib.import_module('benchmark')
    config, *tiny = runs.flags(labelled_folder, tmp_path, '--config.augment.samples=16', '--sweep=seed=0:2')
    tiny = [config, *(flag for flag in tiny if not flag.startswith('--workdir'))]
    found = benchmark.measure_records(tmp_path, 64, {'six': 'seed=0:3 optimizer.peak_lr=1e-3,1e-4'}, tiny)
    assert set(found['finished trials per second, by lanes']) == {1, 8, 64}
    assert min(found['finished trials per second, by lanes'].values()) > 0
    six = found['expansion']['six']
    assert (six['trials'], six['missing']) == (6, 6) and six['peak_memory_bytes'] > 0
    beside = found['time beside the epochs']
    assert beside['epochs'] == 2 * sum(runs.PHASES.values()) and 0 < beside['share'] < 1


class Reference(nn.Module):
    """The paper's CNN as anybody would write it in Flax."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64, 128):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            if features < 128:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(1)(x.mean((1, 2)))[:, 0]


def test_the_operations_counted_by_hand_are_those_that_xla_counts(contest):
    def loss(params, images):
        return optax.sigmoid_binary_cross_entropy(Reference().apply(params, images), jnp.ones(2)).mean()

    images = jnp.zeros((2, 128, 128, 1))
    params = jax.eval_shape(Reference().init, jax.random.key(0), images)
    counted = jax.jit(jax.grad(loss)).lower(params, images).cost_analysis()['flops'] / len(images)
    # XLA leaves out the taps on the zeros around the images, and counts ReLU, pooling and biases.
    assert contest.training_flops((32, 64, 128), 128) == pytest.approx(counted, rel=0.03)


@needs('torch')
def test_pytorch_takes_the_same_first_steps(contest, task):
    (mine,) = contest.first_losses({'bhcnet_jax, float32': contest.project_entry()}, task).values()
    variant = json.dumps(contest.torch_entries('float32')[0].variant)
    read = importlib.import_module('contender').read_task(str(task / 'try'), variant)
    theirs = importlib.import_module('rival_torch').Torch(read).first_losses()
    assert len(set(mine)) == len(mine) == contest.CHECKED
    np.testing.assert_allclose(theirs, mine, rtol=1e-5)


@needs('torch')
def test_models_that_pytorch_maps_over_take_the_same_first_steps(contest, task):
    (mine,) = contest.first_losses({'bhcnet_jax, float32': contest.project_entry()}, task).values()
    variant = json.dumps({'dtype': 'float32', 'way': 'vmap', 'models': 3})
    read = importlib.import_module('contender').read_task(str(task / 'try'), variant)
    theirs = importlib.import_module('rival_torch_gpu').make(read).first_losses()
    np.testing.assert_allclose(theirs, mine, rtol=1e-5)


@needs('torch')
def test_a_captured_step_of_pytorch_is_the_step(task):
    import torch

    if not torch.cuda.is_available():
        pytest.skip('PyTorch captures graphs on a GPU only, and sees none here')
    losses = []
    for way in ('eager', 'graph'):
        variant = json.dumps({'dtype': 'float32', 'device': 'cuda', 'way': way})
        read = importlib.import_module('contender').read_task(str(task / 'try'), variant)
        losses.append(importlib.import_module('rival_torch_gpu').make(read).first_losses())
    np.testing.assert_allclose(*losses, rtol=1e-4)


@needs('torch')
def test_variants_of_pytorch_are_measured_one_by_one_and_what_does_not_run_says_why(tmp_path, monkeypatch):
    accelerator = importlib.import_module('accelerator')
    monkeypatch.setattr(accelerator, 'TOLERANCES', ('float32',))
    every = accelerator.torch_variants('float32')
    monkeypatch.setattr(
        accelerator,
        'torch_variants',
        lambda _: {
            'eager': every['eager'],
            'graph': every['CUDA graph'],
            'vmap': ({**every['eager'][0], 'way': 'vmap', 'models': 2}, 1),
            'two': (every['eager'][0], 2),
        },
    )
    image_set = importlib.import_module('benchmark').random_images(40, 16)
    found = accelerator.measure_torch(tmp_path / 'torch', image_set, 2, 64)['float32']
    assert found['graph'].startswith('did not run: rival_torch_gpu.py')
    for name in ('eager', 'vmap', 'two'):
        assert 0 < found[name]['min'] <= found[name]['median'] <= found[name]['max']


@pytest.fixture
def networks():
    with warnings.catch_warnings():  # of what torchvision and timm import
        warnings.simplefilter('ignore')
        yield importlib.import_module('networks')


# Of strong one step, as in networks.CHECKED.
@needs('torch')
@pytest.mark.parametrize(('name', 'checked'), [('strong', 1), ('cnn_lstm', 2), ('cnn_gru', 2), ('lenet5', 2)])
def test_pytorch_takes_the_same_first_steps_in_networks_written_for_it(contest, networks, name, checked, tmp_path):
    image_set = importlib.import_module('benchmark').random_images(40, 32)
    keys = {**networks.NETWORKS[name], 'batch_size': 8, 'augment.samples': 16}
    contest.prepare(tmp_path / 'task', image_set.images, image_set.labels, checked, **keys)
    read = importlib.import_module('contender').read_task(str(tmp_path / 'task'), '{"dtype": "float32"}')
    for each in read.weights.values():
        if each.ndim == 1:  # biases are 0 and scales 1 before the first step
            each += np.random.default_rng(0).normal(0, 0.1, each.shape)
    mine = importlib.import_module('contender_project').Project(read).first_losses()
    theirs = importlib.import_module('rival_torch').Torch(read).first_losses()
    assert len(set(mine)) == len(mine) == checked
    np.testing.assert_allclose(theirs, mine, rtol=1e-4)


@needs('torch')
@needs('torchvision')
@needs('timm')
@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_has_as_many_parameters_in_pytorch(networks, name):
    config = networks.config_of(name, 64)
    found = jax.eval_shape(lambda x: models.create(config.model).init(jax.random.key(0), x), jnp.zeros((1, 64, 64, 1)))
    assert networks.check_parameters(name, 64) == sum(leaf.size for leaf in jax.tree.leaves(found['params']))


@needs('torch')
def test_another_number_of_parameters_is_refused_in_one_line(contest, networks, monkeypatch):
    builders = importlib.import_module('torch_networks').BUILDERS
    monkeypatch.setitem(builders, 'cnn', builders['lenet5'])
    expected = r"^cnn: PyTorch's network has 60985 parameters, this project's 92801\.$"
    with pytest.raises(contest.ContestError, match=expected):
        networks.check_parameters('cnn', 64)


def test_a_round_of_each_network_takes_as_many_operations_as_whole_batches_allow(networks):
    model = networks.config_of('alexnet', 128).model
    images, per_image = networks.images_of('alexnet', 128, 1024), models.operations(model, 128)
    of_the_cnn = 1024 * models.operations(networks.config_of('cnn', 128).model, 128)
    assert images % 32 == 0 and abs(images * per_image - of_the_cnn) <= 16 * per_image
    assert networks.images_of('lenet5', 128, 1024) == 1024
    assert networks.images_of('vgg16', 128, 512) == 32


def test_a_network_that_is_none_is_answered_with_all_names(contest, networks, tmp_path):
    with pytest.raises(contest.ContestError, match=r"^'vgg19' is no network; expected some of strong,cnn,.*lite0\.$"):
        networks.measure_networks(tmp_path, None, 1, 128, ['cnn', 'vgg19'])


@needs('torch')
@needs('torchvision')
@needs('timm')
def test_a_race_of_a_network_compares_this_project_with_pytorch_at_its_best(networks, tmp_path, capsys):
    image_set = importlib.import_module('benchmark').random_images(40, 32)
    measured = networks.measure_networks(tmp_path, image_set, 1, 32, ['lenet5'])
    (row,) = measured['networks']
    assert row == json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (row['network'], row['parameters'], row['images_per_round']) == ('lenet5', 60_985, 32)
    mine, *theirs = (rates['median'] for rates in row['images_per_second'].values())
    assert len(theirs) == 2
    assert row['times as fast as it, by round'] == pytest.approx([mine / max(theirs)])


@needs('torch')
def test_pytorch_augments_alike():
    import torch

    rival = importlib.import_module('rival_torch')
    torch.manual_seed(0)
    drawn = rival.draw_affine(STRENGTHS, 8)
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32), dtype=np.uint8)
    theirs = rival.warp(torch.from_numpy(images), rival.affine_matrices(**drawn))[:, 0]
    arguments = {name: jnp.asarray(value.numpy()) for name, value in drawn.items()}
    mine = jax.vmap(augment.affine)(images[:, 0].astype(np.float32) / 255, **arguments)
    assert drawn['flip'].any() and not drawn['flip'].all()
    np.testing.assert_allclose(theirs, mine, atol=1e-4)


def test_what_bounds_a_part_is_told_from_its_operations_and_bytes(contest, monkeypatch):
    accelerator = importlib.import_module('accelerator')
    monkeypatch.setattr(accelerator, 'CALLS', 1)
    monkeypatch.setattr(accelerator, '_peak', lambda *_: 1.0)
    monkeypatch.setattr(accelerator, '_bandwidth', lambda *_: 0.2)
    image_set = importlib.import_module('benchmark').random_images(8, 16)
    parts = accelerator.measure_bounds(image_set, 'bfloat16', 2, 1)['parts']
    assert {part['bound by'] for part in parts.values()} == {'memory', 'arithmetic'}
    for part in parts.values():
        arithmetic, memory = part['flops'], part['bytes'] / 0.2
        assert part['bound by'] == ('memory' if memory > arithmetic else 'arithmetic')
        assert part['least seconds'] == pytest.approx(max(arithmetic, memory))
    # Two lanes of two images; what is elementwise adds to the products.
    products = 4 * contest.training_flops((32, 64, 128), 16)
    assert products < sum(parts[f'block {number}']['flops'] for number in (1, 2, 3)) < 1.25 * products


def test_other_losses_are_refused_in_one_line(contest):
    losses = {'bhcnet_jax, float32': [0.7, 0.6], 'PyTorch, float32': [0.7, 0.6001]}
    with pytest.raises(contest.ContestError, match=r'^PyTorch, float32: the loss of step 2 is 0\.6001000'):
        contest.check_losses(losses)
    contest.check_losses({**losses, 'PyTorch, float32': [0.7, 0.60001]})
    with pytest.raises(contest.ContestError, match='step 1 is nan'):
        contest.check_losses({**losses, 'PyTorch, float32': [float('nan'), 0.6]})


def test_a_contender_that_dies_is_named_with_its_reason(contest, task):
    entry = contest.project_entry(dtype='float7')
    with (
        contest.Contestant(entry, task / 'try', task / 'cache') as contestant,
        pytest.raises(contest.ContestError, match=r"^contender_project.py.*float7.*'train': TypeError"),
    ):
        contestant.ask('train')


def test_a_missing_rival_is_answered_with_how_to_install_it(contest):
    with pytest.raises(contest.ContestError, match=r"^no_such_rival is not .* pip install 'bhcnet_jax\[bench\]'$"):
        contest.require('json', 'no_such_rival')


def test_everybody_has_a_turn_in_every_round_and_each_is_first_once(contest):
    turns = list(contest.in_turn('abc', 3))
    assert [''.join(turns[at : at + 3]) for at in (0, 3, 6)] == ['abc', 'bca', 'cab']


def test_the_figure_shows_every_contender(tmp_path):
    rates = {'median': 150.0, 'min': 140.0, 'max': 160.0}
    table = {
        'bhcnet_jax, float32': {'images_per_second': rates, 'variant': {'dtype': 'float32'}},
        'PyTorch, float32': {'images_per_second': rates, 'variant': {'compile': False, 'channels_last': True}},
        'Keras, float32': {'images_per_second': rates, 'variant': {'backend': 'jax', 'jit_compile': 'auto'}},
    }
    path = tmp_path / 'cpu.svg'
    measured = {'contenders': table, 'hardware': '1 x cpu'}
    importlib.import_module('figures').contenders(measured, str(path))
    text = path.read_text()
    title = "Training the paper's CNN: 1 x cpu"
    for words in (title, 'bhcnet_jax, float32', 'eager, channels_last', 'on jax, jit_compile=auto'):
        assert f'<!-- {words} -->' in text  # matplotlib's note of a text that it drew as paths
