"""A stacked autoencoder, from its phase without labels to every command that takes a run."""

import numpy as np
import pandas as pd
import pytest

import bhcnet_jax
from bhcnet_jax import bundle, explain, predict
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.run import train
from lanes import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def run(labelled_folder, tmp_path_factory):
    """The run directory of two folds."""
    folder = tmp_path_factory.mktemp('autoencoder')
    config = tiny_config(
        'autoencoder', phases=('autoencoder', 'balanced'), autoencoder__epochs=3, balanced__epochs=2,
        dataset__name='folder', dataset__dir=str(labelled_folder), augment__policy='none', split__scheme='kfold',
        split__folds=2, recipe='stacked',
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))
        assert train.run(config, train.Options(str(folder / 'run'), sweep='split.fold=0:2'))
        yield folder / 'run'


def test_the_report_tells_its_phases_and_draws_curves_with_and_without_accuracy(run, tmp_path):
    report.main([str(run), f'--out={tmp_path}/report.html', f'--figures={tmp_path}'])
    assert 'phases autoencoder then balanced' in (tmp_path / 'report.md').read_text()


def test_predict_is_the_same_from_the_run_and_from_its_bundle(run, labelled_folder, tmp_path):
    bundle.main([str(run), f'--out={tmp_path}/model.bhc'])
    for name, path in (('run', run), ('bundle', tmp_path / 'model.bhc')):
        counts = predict.predict(bhcnet_jax.load(str(path)), [labelled_folder], tmp_path / name)
        assert counts.predicted == 40
    of_run, of_bundle = (pd.read_csv(tmp_path / name / 'predictions.csv') for name in ('run', 'bundle'))
    np.testing.assert_array_equal(of_run.probability, of_bundle.probability)
    model, images = bhcnet_jax.load(str(run)), sorted(labelled_folder.glob('*.png'))
    expected = model.predict(np.stack([model.preprocess(path) for path in images]))
    np.testing.assert_allclose(of_run.sort_values('file').probability, expected, atol=1e-6)
    assert (tmp_path / 'run/predictions.html').stat().st_size


def test_it_has_no_maps_so_the_ways_to_explain_it_are_named_and_work(run, tmp_path, refusal):
    line = refusal(explain.main, [str(run), f'--out={tmp_path}'])
    assert "how='hires_cam': autoencoder can be explained by integrated_gradients, occlusion" in line
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16), np.uint8)
    for how in ('integrated_gradients', 'occlusion'):
        maps = bhcnet_jax.load(str(run)).explain(images, how)
        assert maps.shape == images.shape and (maps.max(axis=(1, 2)) == 1).all()
