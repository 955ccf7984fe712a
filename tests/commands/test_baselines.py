import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import bhcnet_jax
from bhcnet_jax import baselines, command_line
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import trained
from bhcnet_jax.inference.features import Networks
from bhcnet_jax.plan import splits, sweep
from bhcnet_jax.plan.study import Study
from bhcnet_jax.records import merge, recipes
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import train
from bhcnet_jax.training import classifiers
from lanes import small_config

TREES = 10
COUNT = len(classifiers.BASELINES)
FOLDS = 'split.fold=0:2'
KFOLD = {'split__scheme': 'kfold', 'split__folds': 2}
# Baselines as a process, with the small forest that the tests have too.
PROGRAM = f"""
from absl import app
from bhcnet_jax import baselines, command_line
forest = baselines.METHODS['random forest']
baselines.METHODS['random forest'] = forest._replace(settings={{'n_estimators': {TREES}}})
app.run(baselines.main, flags_parser=command_line.parse)
"""


@pytest.fixture(autouse=True)
def small_forest(monkeypatch):
    forest = classifiers.METHODS['random forest']
    monkeypatch.setitem(classifiers.METHODS, 'random forest', forest._replace(settings={'n_estimators': TREES}))


@pytest.fixture(scope='module', autouse=True)
def prepared(tmp_path_factory):
    """Prepared data is kept in a folder of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """40 images of noise in many sizes, those labelled 1 a little brighter, so that no baseline is always right."""
    path = tmp_path_factory.mktemp('folder')
    generator = np.random.default_rng(0)
    lines = ['file,label']
    for number in range(40):
        brightest = generator.integers(100, 160) + 30 * (number % 2)
        pixels = generator.integers(0, brightest, generator.integers(16, 40, 2), np.uint8)
        Image.fromarray(pixels).save(path / f'{number:02}.png')
        lines.append(f'{number:02}.png,{number % 2}')
    (path / 'labels.csv').write_text('\n'.join(lines))
    return path


def config_of(folder, **overrides):
    return small_config(dataset__name='folder', dataset__dir=str(folder), **{**KFOLD, **overrides})


def rows(directory, table='trials'):
    with contextlib.closing(sqlite3.connect(directory / 'results.sqlite')) as database:
        return pd.read_sql_query(f'SELECT * FROM {table}', database)


def numbers(directory):
    """All that is computed, without times, in an order that does not depend on who was interrupted when."""
    trials = rows(directory).drop(columns=['train_seconds', 'digest']).sort_values('trial_id', ignore_index=True)
    return trials, rows(directory, 'predictions').sort_values(['trial_id', 'image_id'], ignore_index=True)


@pytest.fixture(scope='module')
def done(folder, tmp_path_factory):
    """A run directory with two seeds on two folds."""
    path = tmp_path_factory.mktemp('done') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        forest = classifiers.METHODS['random forest']
        patch.setitem(classifiers.METHODS, 'random forest', forest._replace(settings={'n_estimators': TREES}))
        assert baselines.run(config_of(folder), f'seed=0:2 {FOLDS}', str(path))
    return path


@pytest.mark.slow
def test_baselines_and_a_network_are_tested_on_the_same_folds_and_stand_in_one_table(done, folder, tmp_path):
    tiny = {'phases': ('balanced',), 'balanced__epochs': 1, 'model__filters': (2,), 'augment__policy': 'none'}
    assert train.run(config_of(folder, **tiny), train.Options(str(tmp_path / 'network'), sweep=FOLDS))
    merged = merge.merge([tmp_path / 'network', done])
    network = merged.trials.model == 'cnn'
    digests = [set(map(tuple, part[['fold', 'split_digest']].to_numpy())) for _, part in merged.trials.groupby(network)]
    assert digests[0] == digests[1]
    tested = merged.predictions.groupby('trial').image_id.agg(frozenset)
    for _, same_split in merged.trials.groupby('split_digest'):
        assert len(same_split) == 1 + 2 * COUNT
        assert len(set(tested[same_split.index])) == 1
    board = recipes.make(merged).set_index('recipe')
    assert set(board.index) == {'base', *(each.name for each in classifiers.BASELINES)}
    assert set(board.images) == {40}
    assert set(board.folds) == {'2/2'}
    of_networks = [name for name in board if name.startswith('val_')]
    others = board.drop('base').drop(columns=of_networks)
    assert set(others.trials) == {4}
    # With their intervals over images and their spread over seeds.
    assert others.columns[others.isna().any()].tolist() == []
    assert others.loc[f'linear SVM on {classifiers.PIXELS}', 'accuracy_spread'] == 0


def plain_inputs(folder):
    """From the files, without this project: grey levels [N, 8] of images at 128 pixels, pixels [N, 4096], labels."""
    table = pd.read_csv(folder / 'labels.csv')
    greys = [Image.open(folder / name) for name in table.file]
    resized = {
        side: np.stack([np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR)).ravel() for grey in greys])
        for side in (64, 128)
    }
    grey = resized[128]
    quantiles = [np.quantile(grey, share, axis=1) for share in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
    levels = np.stack([grey.mean(axis=1), grey.std(axis=1), *quantiles], axis=1)
    return table, levels.astype(np.float32), (resized[64] / 255).astype(np.float32)


def test_out_of_fold_predictions_are_those_of_a_plain_loop(done, folder):
    table, levels, pixels = plain_inputs(folder)
    labels = table.label.to_numpy()
    makers = {
        'random forest on grey levels': (levels, lambda seed: RandomForestClassifier(TREES, random_state=seed)),
        'k-nearest neighbours on 64 x 64 pixels': (
            pixels, lambda seed: make_pipeline(StandardScaler(), KNeighborsClassifier())
        ),
        'RBF SVM on 64 x 64 pixels': (
            pixels, lambda seed: CalibratedClassifierCV(make_pipeline(StandardScaler(), SVC()), ensemble=False)
        ),
    }  # fmt: skip
    found = rows(done, 'predictions').merge(rows(done)[['trial_id', 'recipe', 'seed', 'fold']], on='trial_id')
    index = {file: number for number, file in enumerate(table.file)}
    study = Study(config_of(folder))
    assert 0.1 < rows(done).accuracy.mean() < 0.9  # else any two classifiers would agree
    for fold in range(2):
        split = study.split_of(config_of(folder, split__fold=fold))
        for name, (values, make) in makers.items():
            for seed in range(2):
                expected = make(seed).fit(values[split.train], labels[split.train]).predict_proba(values[split.test])
                mine = found[(found.recipe == name) & (found.seed == seed) & (found.fold == fold)]
                assert [index[image_id] for image_id in mine.image_id] == split.test.tolist()
                np.testing.assert_allclose(mine.probability, expected[:, 1], rtol=1e-6)


def test_shortcuts_are_what_the_files_say(folder):
    sizes = []
    for name in pd.read_csv(folder / 'labels.csv').file:
        with Image.open(folder / name) as image:
            sizes.append((*image.size, (folder / name).stat().st_size))
    found = baselines.inputs(Study(config_of(folder)).image_set)
    together = np.concatenate([found[name] for name in ('width and height', 'file size', 'grey levels')], axis=1)
    np.testing.assert_array_equal(together[:, :3], sizes)
    np.testing.assert_array_equal(found['all shortcuts'], together)


@pytest.mark.parametrize('name', classifiers.METHODS)
def test_nothing_but_the_training_part_is_fitted_to(name):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    values = generator.normal(size=(60, 9)) + labels[:, None]
    whole = splits.split(labels, np.arange(60), 'kfold', 3, 1, 0)
    split = splits.hold_out_validation(whole, labels, np.arange(60), 4, 0)
    method = classifiers.METHODS[name]
    expected = classifiers.predict(method, values, labels, split, seed=3)
    outside = np.setdiff1d(np.arange(60), split.train)
    poisoned = labels.copy()
    poisoned[outside] = 1 - poisoned[outside]
    np.testing.assert_array_equal(classifiers.predict(method, values, poisoned, split, seed=3), expected)
    strange = values.copy()
    strange[np.setdiff1d(outside, split.test[:1])] *= 1000  # every image but one that is scored
    assert classifiers.predict(method, strange, labels, split, seed=3)[0] == expected[0]


@pytest.mark.parametrize('name', classifiers.METHODS)
def test_another_seed_changes_what_chance_has_a_part_in(name):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    values = generator.normal(size=(60, 9)) + 0.3 * labels[:, None]
    split = splits.split(labels, np.arange(60), 'kfold', 3, 1, 0)
    method = classifiers.METHODS[name]
    first, again, other = (classifiers.predict(method, values, labels, split, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (name != 'random forest')  # AdaBoost only breaks ties by chance


def test_a_second_call_trains_what_is_missing_and_nothing_else(folder, tmp_path, capsys):
    config = config_of(folder)
    assert baselines.run(config, workdir=str(tmp_path / 'run'))
    first = rows(tmp_path / 'run')
    assert f'{COUNT} of {COUNT} trials to train' in capsys.readouterr().out
    assert baselines.run(config, workdir=str(tmp_path / 'run'))
    assert f' 0 of {COUNT} trials to train' in capsys.readouterr().out
    pd.testing.assert_frame_equal(rows(tmp_path / 'run'), first)  # with the times that they took
    assert baselines.run(config, FOLDS, str(tmp_path / 'run'))
    assert f' {COUNT} of {2 * COUNT} trials to train' in capsys.readouterr().out
    pd.testing.assert_frame_equal(rows(tmp_path / 'run')[:COUNT], first)


def test_a_finished_trial_that_changed_is_trained_again(done, folder, tmp_path, capsys):
    shutil.copytree(done, tmp_path / 'run')
    with contextlib.closing(sqlite3.connect(tmp_path / 'run/results.sqlite')) as database, database:
        changed = database.execute('SELECT trial_id FROM trials').fetchone()
        database.execute('UPDATE predictions SET probability = 1 - probability WHERE trial_id = ?', changed)
    assert baselines.run(config_of(folder), f'seed=0:2 {FOLDS}', str(tmp_path / 'run'))
    assert f' 1 of {4 * COUNT} trials to train' in capsys.readouterr().out
    for found, expected in zip(numbers(tmp_path / 'run'), numbers(done), strict=True):
        pd.testing.assert_frame_equal(found, expected)


def test_a_killed_run_goes_on_and_ends_with_the_same_rows(done, folder, tmp_path):
    command = [
        sys.executable, '-c', PROGRAM, '--config=base', f'--workdir={tmp_path}/run', f'--sweep=seed=0:2 {FOLDS}',
        '--config.dataset.name=folder', f'--config.dataset.dir={folder}',
        '--config.split.scheme=kfold', '--config.split.folds=2',
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert any(line.startswith('random forest on file size: 4 trials') for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    before = rows(tmp_path / 'run')
    finished = before[before.status == 'DONE']
    assert 8 <= len(finished) < 4 * COUNT
    # Half a trial: predictions are in, and the kill came before the row was final.
    with contextlib.closing(sqlite3.connect(tmp_path / 'run/results.sqlite')) as database, database:
        database.execute("UPDATE trials SET status = 'RUNNING' WHERE trial_id = ?", [finished.trial_id.iloc[-1]])
    assert baselines.run(config_of(folder), f'seed=0:2 {FOLDS}', str(tmp_path / 'run'))
    for found, expected in zip(numbers(tmp_path / 'run'), numbers(done), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    assert finished.train_seconds.iloc[0] == rows(tmp_path / 'run').train_seconds.iloc[0]


@pytest.fixture
def exit_status(monkeypatch):
    """Runs the program on a config as if the flags had said so."""

    def run(config, workdir):
        monkeypatch.setattr(command_line, 'CONFIG', SimpleNamespace(value=config))
        with flagsaver.flagsaver(workdir=workdir), pytest.raises(SystemExit) as end:
            baselines.main([])
        return end.value.code

    return run


@pytest.fixture
def tiny_folder(tmp_path):
    """Eight images: with half of them in training, five neighbours are too many."""
    folder = tmp_path / 'tiny'
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    (folder / 'labels.csv').write_text('\n'.join(['file,label', *(f'{n}.png,{n % 2}' for n in range(8))]))
    return folder


def test_a_baseline_that_raises_is_failed_and_the_others_go_on(exit_status, tiny_folder, tmp_path, capsys):
    config = config_of(tiny_folder)
    assert exit_status(config, str(tmp_path / 'run')) == 1
    assert '1 FAILED, the first with ValueError: Expected n_neighbors <= n_samples_fit' in capsys.readouterr().out
    found = rows(tmp_path / 'run').set_index('model')
    failed = {'k-nearest neighbours', 'linear SVM', 'RBF SVM'}
    assert set(found.index[found.status == 'FAILED']) == failed
    assert set(found.status[~found.index.isin(failed)]) == {'DONE'}
    assert found.error['k-nearest neighbours'].startswith('Traceback')
    assert not baselines.run(config, workdir=str(tmp_path / 'run'))  # tries them again
    assert rows(tmp_path / 'run').status.value_counts().to_dict() == {'DONE': COUNT - 3, 'FAILED': 3}


def test_a_key_that_only_networks_use_cannot_be_swept(folder, tmp_path):
    with pytest.raises(UserError, match=r'no baseline uses optimizer\.peak_lr; sweep seed and keys of split'):
        baselines.run(config_of(folder), 'optimizer.peak_lr=1e-3,1e-4', str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_a_directory_of_other_data_or_of_networks_is_refused_in_one_line(done, tiny_folder, folder, tmp_path):
    with pytest.raises(UserError, match=r'holds another run .*data fingerprint is') as refusal:
        baselines.run(config_of(tiny_folder), workdir=str(done))
    assert '\n' not in str(refusal.value)
    (tmp_path / 'network').mkdir()
    config = {'config': {}, 'identity': {'batch_size': 8}, 'swept': []}
    (tmp_path / 'network' / 'config.json').write_text(json.dumps(config))
    with contextlib.closing(Results(tmp_path / 'network' / 'results.sqlite')) as database:
        database.begin([{'trial_id': 'a'}])
    with pytest.raises(UserError, match='batch_size is 8 there, None here'):
        baselines.run(config_of(folder), workdir=str(tmp_path / 'network'))
    with pytest.raises(UserError, match='recipe is baselines there, None here'):
        train.run(config_of(folder), train.Options(str(done)))


def test_another_network_config_goes_into_the_same_directory(done, folder):
    config = config_of(folder, model__filters=(3,), dataset__image_size=32, phases=('balanced',))
    assert baselines.run(config, FOLDS, str(done))
    assert len(rows(done)) == 4 * COUNT


def test_a_mistake_ends_in_one_line(exit_status, tmp_path, capsys):
    assert exit_status(config_of('/does/not/exist'), str(tmp_path / 'run')) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.count('\n') == 1
    assert 'config.dataset.dir /does/not/exist (does not exist)' in said
    assert not list(tmp_path.iterdir())


def test_every_trial_has_an_id_of_its_own(folder):
    study = Study(config_of(folder), 'seed=0:2 split.fold=0:2 split.seed=0:2')
    trials = baselines.trials(study)
    assert len({each.trial_id for each in trials}) == len(trials) == 8 * COUNT
    assert len({each.recipe_id for each in trials}) == 2 * COUNT  # one for each split.seed
    networks = {each.trial_id for each in study.trials(sweep.parse_shard('1/1'))}
    assert not networks & {each.trial_id for each in trials}


TINY = {'phases': ('balanced',), 'balanced__epochs': 1, 'model__filters': (3, 5), 'augment__policy': 'none'}


@pytest.fixture(scope='module')
def networks(folder, tmp_path_factory):
    """A run directory of two networks, one of each fold."""
    path = tmp_path_factory.mktemp('networks') / 'run'
    assert train.run(config_of(folder, **TINY), train.Options(str(path), sweep=FOLDS))
    return path


@pytest.mark.slow
def test_features_are_what_the_last_layer_makes_its_logit_of(networks):
    found = Networks(networks)
    for trial_id in merge.merge([networks]).trials.trial_id:
        model = bhcnet_jax.load(networks, trials=trial_id)
        logit = {name: leaf[0] for name, leaf in model.variables['params']['head']['logit'].items()}
        images = trained.images(trained.select(networks)).images
        logits = found.features(trial_id) @ logit['kernel'][:, 0] + logit['bias']
        np.testing.assert_allclose(logits, model.logits(images), atol=1e-5)


def test_a_support_vector_machine_sees_the_features_of_the_network_of_its_own_fold(networks, folder, tmp_path):
    assert baselines.run(config_of(folder), FOLDS, str(tmp_path / 'svm'), '', Networks(networks))
    merged = merge.merge([tmp_path / 'svm'])
    assert merged.trials.recipe.unique().tolist() == ['linear SVM on features of base']
    study = Study(config_of(folder), FOLDS)
    for trial in merged.trials.itertuples():
        (network,) = (each for each in merge.merge([networks]).trials.itertuples() if each.fold == trial.fold)
        features, labels = Networks(networks).features(network.trial_id), study.image_set.labels
        split = study.split_of(config_of(folder, split__fold=int(trial.fold)))
        machine = make_pipeline(StandardScaler(), SVC(kernel='linear', C=1.0))
        machine = CalibratedClassifierCV(machine, method='sigmoid', cv=5, ensemble=False)
        machine.fit(features[split.train], labels[split.train])
        expected = machine.predict_proba(features[split.test])[:, 1]
        mine = merged.predictions[merged.predictions.trial == trial.Index].set_index('image_id').probability
        np.testing.assert_allclose(mine[np.array(study.image_set.ids)[split.test]], expected, atol=1e-6)


def test_networks_of_another_split_are_refused(networks, folder, tmp_path):
    with pytest.raises(UserError, match='no finished network of base with seed 0 on the same split'):
        baselines.run(config_of(folder, split__seed=1), FOLDS, str(tmp_path / 'svm'), '', Networks(networks))
    assert not (tmp_path / 'svm').exists()
