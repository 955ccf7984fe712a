"""A model is what was trained: the same probabilities, the same pixels, the trials that were asked for."""

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

import bhcnet_jax
import damages
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.errors import UserError
from lanes import small_config


def assert_predicts_as_recorded(run, heads, trials=''):
    """Every finished trial that `trials` names, alone."""
    results, recorded = pd.read_csv(run / 'results.csv'), pd.read_csv(run / 'predictions.csv')
    assert len(results)
    for each in results.itertuples():
        model = bhcnet_jax.load(run, trials=f'{trials} {each.trial_id[:12]}')
        rows = recorded[recorded.trial_id == each.trial_id]
        images = np.stack([model.preprocess(heads / name) for name in rows.image_id])
        np.testing.assert_allclose(model.predict(images), rows.probability, rtol=0, atol=1e-6)
        assert rows.probability.nunique() > 1


def test_a_cnn_predicts_on_test_images_what_its_run_recorded(crossed, heads):
    assert_predicts_as_recorded(crossed, heads)


@pytest.mark.slow
def test_a_recurrent_network_predicts_what_its_run_recorded(trained, heads):
    assert_predicts_as_recorded(trained('gru', {'model__name': 'cnn_gru'}), heads)


def test_running_moments_averages_mirror_images_and_equalised_images_predict_what_the_run_recorded(equalised, heads):
    assert_predicts_as_recorded(equalised, heads)


@pytest.mark.slow
def test_of_a_sweep_over_equalise_both_recipes_predict_what_the_run_recorded(trained, heads):
    assert_predicts_as_recorded(trained('both', sweep='dataset.equalise=False,True'), heads)


@pytest.mark.parametrize('equalise', [False, True])
def test_an_image_is_preprocessed_in_use_as_in_training(equalise, request, heads, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    model = bhcnet_jax.load(request.getfixturevalue('equalised' if equalise else 'crossed'))
    config = small_config(dataset__name='folder', dataset__dir=str(heads), dataset__equalise=equalise)
    image_set = input_pipeline.load(config.dataset)
    assert bool(model.resolution) is equalise
    for image_id, image in zip(image_set.ids, image_set.images, strict=True):
        np.testing.assert_array_equal(model.preprocess(heads / image_id), image)


def test_an_array_is_preprocessed_as_the_file_that_holds_it(crossed, heads):
    model = bhcnet_jax.load(crossed)
    grey = np.asarray(input_pipeline.images.decode((heads / '03.png').read_bytes(), '')[0])
    np.testing.assert_array_equal(model.preprocess(grey), model.preprocess(heads / '03.png'))
    with pytest.raises(UserError, match=r'float32 \[4, 4\], expected greys, uint8 \[height, width\]'):
        model.preprocess(np.zeros((4, 4), np.float32))


def sharper(model):
    """With larger weights: the networks here learn little, and near 0 the mean of logits is hardly any other."""
    return dataclasses.replace(model, variables=jax.tree.map(lambda leaf: 5 * leaf, model.variables))


def test_several_trials_are_an_ensemble_of_the_mean_logit(crossed, heads):
    ensemble = sharper(bhcnet_jax.load(crossed))
    images = np.stack([ensemble.preprocess(heads / f'{number:02}.png') for number in range(6)])
    alone = [sharper(bhcnet_jax.load(crossed, f'seed={seed} fold={fold}')) for seed in (0, 1) for fold in (0, 1)]
    assert {each.members[0] for each in alone} == set(ensemble.members) and len(ensemble.members) == 4
    logits = np.stack([each.logits(images) for each in alone])
    np.testing.assert_allclose(ensemble.logits(images), logits.mean(axis=0), rtol=1e-6)
    probabilities, spread = ensemble.predict_with_spread(images)
    assert np.abs(expit(logits).mean(axis=0) - expit(logits.mean(axis=0))).max() > 1e-4
    np.testing.assert_allclose(probabilities, expit(logits.mean(axis=0)), rtol=1e-6)
    np.testing.assert_array_equal(ensemble.predict(images), probabilities)
    np.testing.assert_allclose(spread, expit(logits).std(axis=0, ddof=1), rtol=1e-4)
    assert np.isnan(alone[0].predict_with_spread(images)[1]).all()


def test_an_image_scores_alike_alone_and_among_any_number_of_others(crossed):
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16), np.uint8)
    model = bhcnet_jax.load(crossed, 'seed=0')
    together = model.logits(images)
    assert together.shape == (70,) and model.logits(images[:0]).shape == (0,)
    for count in (1, 3, 64, 65):
        np.testing.assert_allclose(model.logits(images[:count]), together[:count], rtol=0, atol=1e-6)


def test_trials_of_shards_are_found(trained):
    run = trained('shards', shard='1/2', sweep='seed=0:3')
    trained('shards', shard='2/2', sweep='seed=0:3')
    assert sorted(each.seed for each in bhcnet_jax.load(run).members) == [0, 1, 2]


def test_words_choose_trials(crossed):
    every = bhcnet_jax.load(crossed).members
    recipe_id = pd.read_csv(crossed / 'results.csv').recipe_id[0]
    for words in ("'tiny cnn'", recipe_id[:8], f"'tiny cnn' {recipe_id}"):
        assert bhcnet_jax.load(crossed, words).members == every
    assert bhcnet_jax.load(crossed, every[2].trial_id[:10]).members == every[2:3]
    assert {each.fold for each in bhcnet_jax.load(crossed, 'fold=1').members} == {1}


def test_a_recipe_has_no_seed_and_builds_the_networks_config(crossed):
    model = bhcnet_jax.load(crossed)
    assert model.recipe['model']['filters'] == (4, 6) and 'seed' not in model.recipe
    assert model.config.model.filters == (4, 6) and model.image_size == 16
    assert (model.name, model.class_names) == ('tiny cnn', ('negative', 'positive'))


def refusal(run, trials=''):
    with pytest.raises(UserError) as refused:
        bhcnet_jax.load(run, trials)
    assert '\n' not in str(refused.value)
    return str(refused.value)


@pytest.mark.slow
def test_several_recipes_need_a_choice_and_the_message_gives_one(trained):
    run = trained('two', sweep='model.hidden_units=0,3')
    said = refusal(run)
    assert 'has several recipes' in said
    choice = said.partition("as in trials='")[2].removesuffix("'.")
    assert len(bhcnet_jax.load(run, choice).members) == 1


@pytest.mark.slow
def test_weights_that_were_not_kept_are_named_with_their_flag(trained):
    assert '--config.engine.keep_weights=final' in refusal(trained('dropped', {'engine__keep_weights': 'none'}))


def copy_of(run, tmp_path, sql=''):
    shutil.copytree(run, tmp_path / 'copy')
    with sqlite3.connect(tmp_path / 'copy/results.sqlite') as database:
        database.execute(sql or 'SELECT 1')
    database.close()
    return tmp_path / 'copy'


def test_an_unfinished_run_is_refused_but_not_its_finished_trials(crossed, tmp_path):
    run = copy_of(crossed, tmp_path, "UPDATE trials SET status = 'RUNNING', digest = NULL WHERE seed = 1 AND fold = 1")
    assert '1 of 4 trials are unfinished' in refusal(run)
    assert len(bhcnet_jax.load(run, 'seed=0').members) == 2


def test_trials_that_did_not_end_well_are_left_out_and_refused_alone(crossed, tmp_path):
    run = copy_of(crossed, tmp_path, "UPDATE trials SET status = 'DIVERGED', digest = NULL WHERE seed = 1")
    assert len(bhcnet_jax.load(run).members) == 2
    assert 'no trial has ended well (2 DIVERGED)' in refusal(run, 'seed=1')


def test_wrong_words_and_places_are_refused_in_one_line(crossed, tmp_path):
    assert 'fits none of its trials; it has tiny cnn' in refusal(crossed, 'seed=7')
    assert 'expected seed=NUMBER' in refusal(crossed, 'lr=7')
    assert 'No closing quotation' in refusal(crossed, "'tiny")
    assert 'no such directory' in refusal(tmp_path / 'missing')
    assert 'no .sqlite file in it' in refusal(tmp_path)


def test_an_equalised_run_without_its_resolution_says_how_to_get_it(equalised, tmp_path):
    run = copy_of(equalised, tmp_path)
    data = json.loads((run / 'data.json').read_text())
    (run / 'data.json').write_text(json.dumps({**data, 'resolution': 0}))
    assert 'Start the training again with the same command' in refusal(run)


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(equalised, tmp_path):
    run = copy_of(equalised, tmp_path)
    (checkpoint,) = run.glob('checkpoints/*/imbalanced/1')
    for file in (checkpoint / 'default/d').iterdir():
        file.write_bytes(b'')
    assert 'the weights cannot be read' in refusal(run)
    assert checkpoint.exists()


def test_a_checkpoint_with_other_numbers_than_were_saved_is_refused(equalised, tmp_path):
    run = copy_of(equalised, tmp_path)
    (digests,) = run.glob('checkpoints/*/imbalanced/digests.json')
    known = json.loads(digests.read_text())
    digests.write_text(json.dumps(known | {'1': [digest[::-1] for digest in known['1']]}))
    assert 'does not agree with digests.json' in refusal(run)


def test_reading_a_model_changes_nothing_in_its_run_directory(crossed):
    def content():
        return {path: path.read_bytes() for path in sorted(crossed.rglob('*')) if path.is_file()}

    before = content()
    bhcnet_jax.load(crossed)
    assert content() == before


def test_images_of_another_size_or_kind_are_refused(crossed):
    model = bhcnet_jax.load(crossed)
    for images in (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 16, 16)), np.zeros((16, 16), np.uint8)):
        with pytest.raises(UserError, match=r'expected uint8 \[N, 16, 16\]'):
            model.predict(images)


def test_importing_the_package_imports_no_jax():
    said = 'import bhcnet_jax, sys; print(sorted({"jax", "numpy", "orbax", "tensorflow_datasets"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', said], capture_output=True, text=True, check=True).stdout == '[]\n'


@pytest.mark.parametrize('name', ['config.json', 'env.json', 'data.json'])
def test_a_model_is_loaded_or_a_line_names_the_damaged_file(equalised, tmp_path, name):
    run = shutil.copytree(equalised, tmp_path / 'run')
    damages.assert_read_or_named(lambda: bhcnet_jax.load(run), run / name)
