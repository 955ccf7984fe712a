import os
import socket
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest

from bhcnet_jax import results
from bhcnet_jax.results import Results, ResultsError

TRIAL = {'trial_id': 'abc', 'recipe': 'smoke', 'dataset': 'folder', 'seed': 0, 'fold': 0, 'phase': 'balanced'}


def epoch(number, loss=0.5):
    return {'trial_id': 'abc', 'phase': 'balanced', 'epoch': number, 'train_loss': loss, 'seconds': 1.0, 'images': 20}


def prediction(image, probability):
    return {'trial_id': 'abc', 'image_id': image, 'label': 1, 'probability': probability}


@pytest.fixture
def database(tmp_path):
    opened = Results(tmp_path / 'results.sqlite')
    opened.begin(TRIAL)
    yield opened
    opened.close()


def test_a_trial_is_running_until_it_is_finished(database):
    assert database.status('other') is None
    assert database.status('abc') == 'RUNNING'
    database.finish('abc', {'tp': 3, 'accuracy': 0.75})
    assert database.status('abc') == 'DONE'
    row = database.read('trials', 'abc').iloc[0]
    assert (row.tp, row.accuracy, row.recipe) == (3, 0.75, 'smoke')


def test_beginning_again_changes_nothing(database):
    database.finish('abc', {'tp': 3})
    database.begin({**TRIAL, 'recipe': 'other'})
    assert database.status('abc') == 'DONE'
    assert list(database.read('trials', 'abc').recipe) == ['smoke']


def test_an_epoch_recorded_again_replaces_its_row(database):
    database.record_epoch([epoch(1)], [prediction('a', 0.1)])
    database.record_epoch([epoch(2)], [prediction('a', 0.2)])
    database.record_epoch([epoch(2, loss=0.25)], [prediction('a', 0.3)])
    assert list(database.read('epochs', 'abc').train_loss) == [0.5, 0.25]
    assert list(database.read('predictions', 'abc').probability) == [0.3]


def test_an_epoch_is_recorded_whole_or_not_at_all(database):
    with pytest.raises(ResultsError, match='no column named typo'):
        database.record_epoch([epoch(1)], [{**prediction('a', 0.1), 'typo': 1}])
    assert database.read('epochs', 'abc').empty


def test_the_export_has_the_columns_readers_ask_for_and_loses_no_digit(database, tmp_path):
    database.record_epoch([epoch(1)], [prediction('a', 1 / 3)])
    database.export(tmp_path)
    assert pd.read_csv(tmp_path / 'results.csv').empty  # not finished yet
    database.finish('abc', {'accuracy': 0.1 + 0.2, 'auc': float('nan')})
    database.export(tmp_path)
    columns = [
        'trial_id', 'recipe', 'model', 'dataset', 'seed', 'fold', 'phase', 'epochs', 'tp', 'tn', 'fp', 'fn', 'accuracy',
        'precision', 'sensitivity', 'specificity', 'f1', 'auc', 'log_loss', 'brier', 'train_seconds',
        'images_per_second',
    ]  # fmt: skip
    table = pd.read_csv(tmp_path / 'results.csv')
    assert list(table.columns[: len(columns)]) == columns
    assert table.accuracy[0] == 0.1 + 0.2
    assert pd.isna(table.auc[0])
    predictions = pd.read_csv(tmp_path / 'predictions.csv')
    assert list(predictions.columns[:4]) == ['trial_id', 'image_id', 'label', 'probability']
    assert predictions.probability[0] == 1 / 3
    assert not list(tmp_path.glob('*.partial'))


def test_a_database_of_a_newer_schema_is_refused_and_left_alone(database, tmp_path):
    database.close()
    connection = sqlite3.connect(tmp_path / 'results.sqlite')
    connection.execute(f'PRAGMA user_version = {results.SCHEMA_VERSION + 1}')
    connection.close()
    before = (tmp_path / 'results.sqlite').read_bytes()
    with pytest.raises(ResultsError, match=rf'schema {results.SCHEMA_VERSION + 1}, this version'):
        Results(tmp_path / 'results.sqlite')
    assert (tmp_path / 'results.sqlite').read_bytes() == before


@pytest.mark.parametrize('damage', ['not a database', 'a broken page'])
def test_a_damaged_database_is_refused(database, tmp_path, damage):
    for number in range(200):
        database.record_epoch([epoch(number)], [prediction(f'image {number}', 0.5)])
    database.close()
    path = tmp_path / 'results.sqlite'
    data = bytearray(path.read_bytes())
    if damage == 'not a database':
        data[:] = b'hello' * 1000
    else:
        data[4096:8192] = b'\xff' * 4096
    path.write_bytes(data)
    with pytest.raises(ResultsError, match=r'results\.sqlite: .*Restore it from a copy'):
        Results(path)


def test_a_database_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(ResultsError, match='unable to open'):
        Results(tmp_path / 'missing' / 'results.sqlite')


def enter(database, *trial_ids):
    database.enter([{**TRIAL, 'trial_id': trial_id} for trial_id in trial_ids])


def test_trials_go_from_pending_to_their_end(database):
    enter(database, 'a', 'b', 'c')
    assert database.statuses() == {'abc': 'RUNNING', 'a': 'PENDING', 'b': 'PENDING', 'c': 'PENDING'}
    database.claim(['a', 'b', 'c'], 'host', 1)
    database.finish_many({'a': {'accuracy': 0.5}})
    database.fail('b', 'Traceback ... RuntimeError: no')
    database.diverge('c', 'balanced', 3)
    assert database.statuses() == {'abc': 'RUNNING', 'a': 'DONE', 'b': 'FAILED', 'c': 'DIVERGED'}
    assert database.read('trials', 'b').error[0].endswith('RuntimeError: no')
    assert tuple(database.read('trials', 'c').loc[0, ['diverged_phase', 'diverged_epoch']]) == ('balanced', 3)


def test_a_forgotten_trial_leaves_nothing(database):
    database.record_epoch([epoch(1)], [prediction('a', 0.1)])
    database.forget(['abc'])
    assert database.statuses() == {}
    assert database.read('epochs', 'abc').empty
    assert database.read('predictions', 'abc').empty


def test_a_running_trial_whose_process_is_gone_is_picked_up(database):
    child = subprocess.Popen([sys.executable, '-c', 'pass'])
    child.wait()
    enter(database, 'gone', 'alive', 'elsewhere')
    database.claim(['gone'], socket.gethostname(), child.pid)
    database.claim(['alive'], socket.gethostname(), os.getppid())
    database.claim(['elsewhere'], 'another host', 1)
    assert database.abandoned() == ['gone']


def test_an_older_schema_is_migrated_with_its_rows(database, tmp_path, monkeypatch):
    database.close()
    columns = {**results.TRIAL_COLUMNS, 'colour': 'TEXT'}
    monkeypatch.setattr(results, 'SCHEMA_VERSION', 2)
    monkeypatch.setitem(results.MIGRATIONS, 1, ["ALTER TABLE trials ADD COLUMN colour TEXT DEFAULT 'grey'"])
    monkeypatch.setitem(results.TABLES, 'trials', (columns, results.TABLES['trials'][1]))
    newer = Results(tmp_path / 'results.sqlite')
    assert list(newer.read('trials', 'abc').colour) == ['grey']
    newer.close()
