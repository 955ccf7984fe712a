import contextlib
import json
import multiprocessing
import os
import re
import shutil
import threading

import numpy as np
import pytest

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import groups, splits, trial
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import run_dir
from lanes import small_config


@pytest.fixture(scope='module')
def image_set(labelled_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        return input_pipeline.load(folder_config(labelled_folder).dataset)


def folder_config(folder, **overrides):
    return small_config(dataset__name='folder', dataset__dir=str(folder), imbalanced__positives=30, **overrides)


def make(image_set, folder='', **overrides):
    config = folder_config(folder, **overrides)
    part = config.split
    split = splits.split(image_set.labels, np.arange(40), part.scheme, part.folds, part.fold, part.seed)
    return trial.make(config, image_set.labels, split, image_set.fingerprint)


def claim(path, image_set, swept=(), trains=True, **overrides):
    with run_dir.claim(path, folder_config('', **overrides), image_set, swept):
        if trains:
            with contextlib.closing(Results(path / 'results.sqlite')) as database:
                database.begin([{'trial_id': 'a'}])


def test_the_same_run_may_come_back_with_other_engine_settings(image_set, tmp_path):
    claim(tmp_path / 'run', image_set)
    before = (tmp_path / 'run/config.json').read_bytes()
    claim(tmp_path / 'run', image_set, engine__checkpoint_seconds=3.0)
    assert (tmp_path / 'run/config.json').read_bytes() == before


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'seed': 4}, r'seed is 0 there, 4 here'),
        ({'optimizer__peak_lr': 0.5}, r'optimizer.peak_lr is 0.001 there, 0.5 here'),
        ({'phases': ('balanced',)}, r"phases is \['balanced', 'imbalanced'\] there, \['balanced'\] here\)"),
        ({'optimizer__ema': 0.9}, 'optimizer.ema is None there, 0.9 here'),
        ({'seed': 4}, r'--workdir=\S+/run-2, or train both here: --sweep=seed=0,4\.$'),
    ],
)
def test_another_config_is_refused_and_nothing_is_overwritten(image_set, tmp_path, overrides, message):
    claim(tmp_path / 'run', image_set)
    before = (tmp_path / 'run/config.json').read_bytes()
    with pytest.raises(UserError, match=message) as refusal:
        claim(tmp_path / 'run', image_set, **overrides)
    assert '\n' not in str(refusal.value)
    assert (tmp_path / 'run/config.json').read_bytes() == before


def test_a_refusal_names_phases_model_and_data_first(image_set, tmp_path):
    claim(tmp_path / 'run', image_set)
    others = {'seed': 4, 'batch_size': 4, 'augment__policy': 'none', 'optimizer__peak_lr': 0.5}
    first = {'dataset__image_size': 32, 'model__name': 'cnn_lstm', 'phases': ('balanced',)}
    with pytest.raises(UserError) as refusal:
        claim(tmp_path / 'run', image_set, **others, **first)
    named = re.findall(r'[(;] ?([\w.]+) is ', str(refusal.value))
    assert {*named[:2]} == {'phases', 'model.name'} and named[2:] == ['dataset.image_size']
    assert re.search(r'; and \d+ more\)', str(refusal.value))


def test_a_swept_key_may_differ_then_and_later(image_set, tmp_path):
    claim(tmp_path / 'run', image_set, swept=['seed'])
    claim(tmp_path / 'run', image_set, seed=4)
    claim(tmp_path / 'run', image_set, swept=['augment.affine.zoom'], augment__affine__zoom=0.2)
    claim(tmp_path / 'run', image_set, augment__affine__zoom=0.3, seed=2)
    with pytest.raises(UserError, match=r'batch_size is 8 there, 4 here'):
        claim(tmp_path / 'run', image_set, batch_size=4)


def test_a_phase_that_only_one_of_two_calls_uses_may_be_swept(image_set, tmp_path):
    claim(tmp_path / 'run', image_set, swept=['seed'], phases=('balanced',))
    claim(tmp_path / 'run', image_set, swept=['seed', 'phases'], imbalanced__epochs=7)
    with pytest.raises(UserError, match=r'imbalanced.epochs is 7 there, 6 here'):
        claim(tmp_path / 'run', image_set, swept=['phases'], imbalanced__epochs=6)


def test_a_call_that_ended_before_it_trained_leaves_the_directory_to_others(image_set, tmp_path):
    claim(tmp_path / 'run', image_set, trains=False)
    claim(tmp_path / 'run', image_set, seed=4)
    with pytest.raises(UserError, match='seed is 4 there, 0 here'):
        claim(tmp_path / 'run', image_set)


def test_a_check_refuses_what_a_claim_would_and_writes_nothing(image_set, tmp_path):
    run_dir.check(tmp_path / 'run', folder_config(''), image_set)
    assert not (tmp_path / 'run').exists()
    claim(tmp_path / 'run', image_set)
    before = (tmp_path / 'run/config.json').read_bytes()
    run_dir.check(tmp_path / 'run', folder_config('', seed=4), image_set, ['seed'])
    with pytest.raises(UserError, match='seed is 0 there, 4 here'):
        run_dir.check(tmp_path / 'run', folder_config('', seed=4), image_set)
    assert (tmp_path / 'run/config.json').read_bytes() == before


def test_other_data_are_refused(image_set, tmp_path):
    claim(tmp_path / 'run', image_set)
    other = input_pipeline.ImageSet(**{**vars(image_set), 'fingerprint': 'f' * 64})
    with pytest.raises(UserError, match='data fingerprint is'):
        claim(tmp_path / 'run', other)


def test_a_folder_of_other_files_is_refused(image_set, tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(UserError, match=r'no config\.json'):
        claim(tmp_path, image_set)
    assert os.listdir(tmp_path) == ['thesis.tex']


def test_a_start_that_was_killed_while_writing_config_json_can_be_repeated(image_set, tmp_path):
    (tmp_path / 'config.json.partial').write_text('{"half')
    claim(tmp_path, image_set)
    assert json.loads((tmp_path / 'config.json').read_text())['dataset'] == image_set.label


@pytest.mark.parametrize('text', ['', '[]', '{"identity', '{"identity": [], "swept": []}', '\x00', '[' * 10**5])
def test_an_unreadable_config_json_is_refused(image_set, tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=r'config\.json cannot be read'):
        claim(tmp_path, image_set)


def test_a_file_in_place_of_the_directory_is_refused(image_set, tmp_path):
    (tmp_path / 'run').write_text('')
    with pytest.raises(UserError, match='cannot be used: File exists'):
        claim(tmp_path / 'run', image_set)


def test_a_directory_that_somebody_is_still_deleting_is_called_deleted(image_set, tmp_path):
    path = tmp_path / 'run'
    claim(path, image_set)
    with pytest.raises(UserError, match=f'{path} was deleted while'), run_dir.claim(path, folder_config(''), image_set):
        later = threading.Timer(0.3, shutil.rmtree, [path])  # what the run missed is the first to go
        later.start()
        (path / 'checkpoints/a/balanced').rmdir()
    later.join()
    assert not path.exists()


def test_a_missing_file_of_a_directory_that_stays_is_named(image_set, tmp_path):
    path = tmp_path / 'run'
    claim(path, image_set)
    message = f'{path}/checkpoints cannot be used: No such file'
    with pytest.raises(UserError, match=message), run_dir.claim(path, folder_config(''), image_set):
        (path / 'checkpoints').rmdir()
    assert (path / 'results.sqlite').exists()


def _hold(path, image_set, held, done):
    with run_dir.claim(path, folder_config(''), image_set):
        held.set()
        done.wait(60)


def test_two_processes_cannot_train_in_one_directory(image_set, tmp_path):
    context = multiprocessing.get_context('spawn')
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, image_set, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(UserError, match='another process is training here'):
        claim(tmp_path, image_set)
    done.set()
    other.join()
    claim(tmp_path, image_set)


def test_every_start_is_recorded_with_what_it_ran_on(tmp_path):
    run_dir.record_start(tmp_path, 'first command')
    run_dir.record_start(tmp_path, 'second command', 'seed=0:2')
    starts = json.loads((tmp_path / 'env.json').read_text())
    assert [start['command'] for start in starts] == ['first command', 'second command']
    assert [start['sweep'] for start in starts] == ['', 'seed=0:2']
    assert starts[0]['hardware'].startswith('2 x cpu')
    assert {'jax', 'flax', 'optax', 'orbax-checkpoint'} <= set(starts[0]['packages'])


def test_the_data_are_recorded_by_image_id(image_set, tmp_path):
    this = make(image_set)
    run_dir.record_data(tmp_path, image_set, groups.find_groups(image_set), this)
    data = json.loads((tmp_path / 'data.json').read_text())
    assert data['images'] == {'negative': 20, 'positive': 20}
    assert data['pixel_sha256'][image_set.ids[3]] == image_set.pixel_sha256[3]
    assert sorted(data['train'] + data['test']) == sorted(image_set.ids)
    assert data['test'] == [image_set.ids[index] for index in this.split.test]
    assert data['phases']['imbalanced'] == {'negative': 18, 'positive': 30, 'augmented': 20}


def test_the_resolution_of_equalised_images_outlives_a_start_without_them(image_set, tmp_path):
    grouping = groups.find_groups(image_set)
    for resolution, recorded in ((0, 0), (31, 31), (0, 31)):
        run_dir.record_data(tmp_path, image_set, grouping, None, resolution)
        assert json.loads((tmp_path / 'data.json').read_text())['resolution'] == recorded


def test_synthetic_images_are_called_phantom(image_set):
    synthetic = input_pipeline.ImageSet(**{**vars(image_set), 'name': 'phantom', 'synthetic': True})
    assert synthetic.label == 'PHANTOM'
    assert image_set.label.startswith('labelled_folder')  # its name
