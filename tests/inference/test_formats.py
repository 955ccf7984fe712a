"""An exported file gives the model's logits to who has neither this package nor its convolutions."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import bhcnet_jax
from bhcnet_jax import export, models
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import formats
from bhcnet_jax.inference.model import Member, Model
from bhcnet_jax.plan import trial
from lanes import random_variables, small_config, tiny_config

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 16, 16), np.uint8)
NETWORKS = {
    'cnn': {'model__convs': 2, 'model__pooling': 'mean_max'},
    'group': {'model__norm': 'group', 'model__hidden_units': 5},
    'cnn_lstm': {'model__name': 'cnn_lstm', 'model__norm': 'batch'},
    'cnn_gru': {'model__name': 'cnn_gru', 'augment__test_flip': True},
    'ensemble': {'seeds': (0, 1, 2)},
}


def untrained(seeds=(0,), **overrides):
    """A model of random weights; that they were never trained changes nothing for who exports them."""
    config = small_config(**overrides)
    networks = [models.create(config.model).init(jax.random.key(seed), jnp.zeros((1, 16, 16, 1))) for seed in seeds]
    return made_of(config, networks, seeds)


def made_of(config, networks, seeds=(0,)):
    variables = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
    members = tuple(Member(f'{seed:016x}', seed, 0) for seed in seeds)
    described = {'dataset': 'PHANTOM', 'class_names': ('normal', 'hemorrhage'), 'fingerprint': '0' * 64}
    return Model('tiny', trial.resolve(config), members, variables, **described, resolution=0, training_images=None)


@pytest.fixture(scope='module', params=[*NETWORKS, 'equalised'])
def model(request):
    if request.param in NETWORKS:
        return untrained(**NETWORKS[request.param])
    return bhcnet_jax.load(request.getfixturevalue(request.param))


def run_onnx(path, images):
    return onnxruntime.InferenceSession(path).run(None, {'images': images})[0]


def run_stablehlo(path, images):
    return jax.export.deserialize(bytearray(path.read_bytes())).call(images)


@pytest.mark.parametrize(('ending', 'run'), [('onnx', run_onnx), ('stablehlo', run_stablehlo)])
def test_any_number_of_images_gets_the_logits_of_the_model(model, ending, run, tmp_path):
    path = tmp_path / f'model.{ending}'
    assert formats.write(model, path) <= 1e-4
    for count in (5, 1):
        logits = np.asarray(run(path, IMAGES[:count]))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, model.logits(IMAGES[:count]), rtol=0, atol=1e-4)


def test_onnx_has_plain_convolutions_and_says_what_it_is(model, tmp_path):
    formats.write(model, tmp_path / 'model.onnx')
    program = onnx.load(tmp_path / 'model.onnx')
    onnx.checker.check_model(program)
    kinds = [node.op_type for node in program.graph.node]
    passes = len(model.members) * (2 if model.config.augment.test_flip else 1)
    assert kinds.count('Conv') == len(model.config.model.filters) * model.config.model.convs * passes
    told = {each.key: each.value for each in program.metadata_props}
    assert told['recipe'] == model.name and told['positive_class'] == model.class_names[1]
    assert json.loads(told['trials']) == [each.trial_id for each in model.members]


@pytest.mark.parametrize(('name', 'convolutions'), [('resnet18', 20), ('efficientnet_lite0', 49)])
def test_short_cuts_strides_and_depthwise_convolutions_are_exported_too(name, convolutions, tmp_path):
    config = tiny_config(name, model__norm='batch')
    assert formats.write(made_of(config, [dict(random_variables(config))]), tmp_path / 'model.onnx') <= 1e-4
    kinds = [node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node]
    assert kinds.count('Conv') == convolutions


def test_stablehlo_is_for_cpus_and_nvidia_gpus(tmp_path):
    formats.write(untrained(), tmp_path / 'model.stablehlo')
    exported = jax.export.deserialize(bytearray((tmp_path / 'model.stablehlo').read_bytes()))
    assert exported.platforms == ('cpu', 'cuda')
    assert str(exported.in_avals[0].shape) == '(N, 16, 16)'


@pytest.mark.parametrize('ending', ['onnx', 'stablehlo'])
def test_a_program_of_other_logits_is_not_kept(ending, tmp_path, monkeypatch):
    right = formats.as_function
    monkeypatch.setattr(formats, 'as_function', lambda model: lambda images: right(model)(images) + 2e-4)
    with pytest.raises(UserError, match=r'logits differ by up to 0.0002.*expected at most 0.0001'):
        formats.write(untrained(), tmp_path / f'model.{ending}')
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_exported_as_float32(tmp_path):
    model = untrained(model__dtype='bfloat16')
    formats.write(model, tmp_path / 'model.onnx')
    np.testing.assert_allclose(run_onnx(tmp_path / 'model.onnx', IMAGES), model.logits(IMAGES), rtol=0, atol=0.02)


def test_the_command_writes_from_a_run_and_says_what(crossed, tmp_path, capsys):
    export.main([str(crossed), f'--out={tmp_path / "model.onnx"}', '--trials=seed=1 fold=0'])
    told = capsys.readouterr().out
    assert 'uint8 [N, 16, 16] -> logits float32 [N] of tiny cnn' in told and 'research only' in told
    expected = bhcnet_jax.load(crossed, 'seed=1 fold=0').logits(IMAGES)
    np.testing.assert_allclose(run_onnx(tmp_path / 'model.onnx', IMAGES), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(('out', 'words'), [
    ('model.pt', "its ending is '.pt', expected .stablehlo or .onnx"), ('missing/model.onnx', 'cannot be written'),
    ('model', "its ending is ''"),
])  # fmt: skip
def test_another_ending_or_folder_is_one_line(crossed, out, words, tmp_path, refusal):
    assert words in refusal(export.main, [str(crossed), f'--out={tmp_path / out}'])


@pytest.mark.parametrize('missing', ['jax2onnx', 'onnxruntime'])
def test_without_the_extra_onnx_names_it_and_stablehlo_needs_none(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install 'bhcnet_jax\[onnx\]'"):
        formats.write(untrained(), tmp_path / 'model.onnx')
    formats.write(untrained(), tmp_path / 'model.stablehlo')
