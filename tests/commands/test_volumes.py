"""A network that sees volumes, from its training to every command: each takes its run, or refuses it in one line."""

import numpy as np
import pandas as pd
import pytest

import bhcnet_jax
import simple_heads
from bhcnet_jax import baselines, bundle, difficulty, evaluate, explain, export
from bhcnet_jax.datasets.phantom import heads, held_out
from bhcnet_jax.errors import UserError
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.run import train
from lanes import small_config

pytestmark = pytest.mark.slow

SLICES, SIZE = 4, 16


@pytest.fixture(scope='module', autouse=True)
def _simple_heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, 'draw_volume', simple_heads.draw_volume)
        yield


def volumes_config():
    return small_config(
        recipe='volumes', model__name='mask_roi', model__mask_head=True, dataset__name='phantom',
        dataset__slices=SLICES, phases=('phantom',), phantom__epochs=1, phantom__samples=16, phantom__mask=1.0,
        augment__policy='none', split__scheme='kfold', split__folds=2,
    )  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The run directory of two folds of one training."""
    folder = tmp_path_factory.mktemp('volumes') / 'run'
    assert train.run(volumes_config(), train.Options(str(folder), sweep='split.fold=0:2'))
    return folder


def test_every_held_out_patient_is_scored_once_by_the_networks_that_were_kept(run):
    volumes, labels = held_out.draw(SIZE, SLICES)
    found = pd.read_csv(run / 'predictions.csv').sort_values('image_id')
    assert found.image_id.tolist() == [f'patient_{place:03d}' for place in range(held_out.COUNT)]
    assert found.label.tolist() == labels.tolist() and set(found.dataset) == {'PHANTOM'}
    model = bhcnet_jax.load(str(run), 'fold=0')
    np.testing.assert_allclose(model.predict(volumes), found.probability, atol=1e-5)


def test_the_report_has_the_network_with_its_volumes_and_does_not_compare_it_with_the_paper(run, tmp_path):
    report.main([str(run), f'--out={tmp_path}/report.html'])
    text = (tmp_path / 'report.md').read_text()
    assert 'PHANTOM' in text and f'volumes of {SLICES} slices' in text
    assert 'The paper reports' not in text
    assert 'Missing: baselines (they see single images, and these are volumes).' in text
    assert 'bhcnet_jax.baselines --config' not in text


def test_a_bundle_predicts_as_its_run_and_says_that_it_marks_no_outliers(run, tmp_path, capsys):
    bundle.main([str(run), f'--out={tmp_path}/model.bhc'])
    assert 'will not be marked: its networks see volumes' in capsys.readouterr().out
    volumes, _ = held_out.draw(SIZE, SLICES)
    packed, loaded = (bhcnet_jax.load(str(path)) for path in (tmp_path / 'model.bhc', run))
    np.testing.assert_array_equal(packed.predict(volumes[:8]), loaded.predict(volumes[:8]))


@pytest.mark.parametrize(
    ('command', 'flags'),
    [(evaluate, ['--data={0}']), (explain, []), (difficulty, ['--heads=100']), (export, ['--out={0}/model.onnx'])],
)
def test_a_command_for_single_images_refuses_the_run_in_one_line(command, flags, run, tmp_path, refusal):
    line = refusal(command.main, [str(run), *(flag.format(tmp_path) for flag in flags)])
    assert f'takes networks that see single images; volumes sees volumes of {SLICES} slices.' in line


def test_baselines_refuse_volumes(tmp_path):
    with pytest.raises(UserError, match=r'^dataset\.slices is 4, but baselines see single images; expected 1\.$'):
        baselines.run(volumes_config(), workdir=str(tmp_path))
