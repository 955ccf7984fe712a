"""The results database: what it keeps, migrates and refuses, and many of them read as one."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge, schema
from bhcnet_jax.records.database import Results

TRIAL = {'trial_id': 'abc', 'recipe': 'smoke', 'dataset': 'folder', 'seed': 0, 'fold': 0, 'phase': 'balanced'}


def epoch(number, loss=0.5):
    return {'trial_id': 'abc', 'phase': 'balanced', 'epoch': number, 'train_loss': loss, 'seconds': 1.0, 'images': 20}


def prediction(image, probability):
    return {'trial_id': 'abc', 'image_id': image, 'label': 1, 'probability': probability}


@pytest.fixture
def database(tmp_path):
    opened = Results(tmp_path / 'results.sqlite')
    opened.begin([TRIAL])
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
    database.begin([{**TRIAL, 'recipe': 'other'}])
    assert database.status('abc') == 'DONE'
    assert list(database.read('trials', 'abc').recipe) == ['smoke']


def test_an_epoch_recorded_again_replaces_its_row(database):
    database.record_epoch([epoch(1)], [prediction('a', 0.1)])
    database.record_epoch([epoch(2)], [prediction('a', 0.2)])
    database.record_epoch([epoch(2, loss=0.25)], [prediction('a', 0.3)])
    assert list(database.read('epochs', 'abc').train_loss) == [0.5, 0.25]
    assert list(database.read('predictions', 'abc').probability) == [0.3]


def test_rows_that_are_written_again_stay_in_their_place(database):
    database.begin([{**TRIAL, 'trial_id': 'b'}])
    for trial_id in ('abc', 'b', 'abc'):  # the first is resumed after the second
        rows = [{**epoch(number), 'trial_id': trial_id} for number in (1, 2)]
        database.record_epoch(rows, [{**prediction(image, 0.5), 'trial_id': trial_id} for image in 'xy'])
    for table in ('epochs', 'predictions'):
        in_order = database._database.execute(f'SELECT trial_id FROM {table} ORDER BY rowid').fetchall()
        assert in_order == [('abc',), ('abc',), ('b',), ('b',)]


def test_scores_are_those_of_finished_trials_in_the_order_of_their_rows(database):
    database.begin({**TRIAL, 'trial_id': trial_id} for trial_id in 'bc')
    database.finish('c', {'accuracy': 0.5, 'auc': float('nan')})
    database.finish('abc', {'accuracy': 0.75})
    scores = database.scores()
    assert list(scores) == ['abc', 'c']
    assert (scores['abc']['accuracy'], scores['c']['accuracy'], scores['c']['auc']) == (0.75, 0.5, None)


def test_an_epoch_is_recorded_whole_or_not_at_all(database):
    with pytest.raises(UserError, match='no column named typo'):
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
    connection.execute(f'PRAGMA user_version = {schema.SCHEMA_VERSION + 1}')
    connection.close()
    before = (tmp_path / 'results.sqlite').read_bytes()
    with pytest.raises(UserError, match=rf'schema {schema.SCHEMA_VERSION + 1}, this version'):
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
    with pytest.raises(UserError, match=r'results\.sqlite: .*Restore it from a copy'):
        Results(path)


def test_a_database_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(UserError, match='unable to open'):
        Results(tmp_path / 'missing' / 'results.sqlite')


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A database that another program holds."""
    for module in ('database', 'merge'):
        monkeypatch.setattr(f'bhcnet_jax.records.{module}.WAIT_SECONDS', 0.1)
    with contextlib.closing(Results(tmp_path / 'results.sqlite')) as opened:
        opened.begin([TRIAL])
        with contextlib.closing(sqlite3.connect(tmp_path / 'results.sqlite', isolation_level=None)) as other:
            other.execute('BEGIN EXCLUSIVE')
            yield opened


@pytest.mark.parametrize(
    'use',
    [
        lambda opened, path: Results(path / 'results.sqlite'),
        lambda opened, path: opened.statuses(),
        lambda opened, path: opened.status('abc'),
        lambda opened, path: opened.read('epochs', 'abc'),
        lambda opened, path: opened.scores(),
        lambda opened, path: opened.export(path),
        lambda opened, path: opened.finish('abc', {}),
        lambda opened, path: merge.merge([path]),
        lambda opened, path: merge.look(path),
    ],
)
def test_a_database_that_another_program_holds_is_not_called_damaged(held, tmp_path, use):
    with pytest.raises(UserError, match=r'sqlite: another program holds it .* Close that and start again') as error:
        use(held, tmp_path)
    assert 'Restore' not in str(error.value)


def trial(trial_id, **more):
    return {**TRIAL, 'trial_id': trial_id, 'recipe_id': 'r', 'data_fingerprint': 'f', **more}


def finished(path, trial_id='abc', probabilities=(0.1, 0.9), **more):
    """A database with one finished trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = Results(path)
    opened.begin([trial(trial_id, **more)])
    rows = [prediction(f'{number}.png', value) for number, value in enumerate(probabilities)]
    opened.record_epoch([], [{**row, 'trial_id': trial_id} for row in rows])
    opened.finish(trial_id, {})
    opened.close()
    return path


def gone_pid():
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    return child.pid


def state(database, trial_id):
    return database.read('trials', trial_id)[list(schema.STATE_COLUMNS)].iloc[0].dropna().to_dict()


def test_every_status_is_told_apart_and_says_why(database):
    database.begin([trial(name) for name in 'bcde'])
    assert state(database, 'c').items() >= {'host': socket.gethostname(), 'pid': os.getpid()}.items()
    database.prune(['b'])
    database.fail('d', 'Traceback: boom')
    database.diverge('e', 'imbalanced', 3)
    assert database.statuses() == {'abc': 'RUNNING', 'b': 'PRUNED', 'c': 'RUNNING', 'd': 'FAILED', 'e': 'DIVERGED'}
    assert state(database, 'd') == {'error': 'Traceback: boom'}
    assert state(database, 'e') == {'diverged_phase': 'imbalanced', 'diverged_epoch': 3}


def test_a_finished_row_does_not_tell_that_the_trial_had_failed_before(database):
    database.fail('abc', 'boom')
    database.begin([TRIAL])
    assert state(database, 'abc').keys() == {'host', 'pid', 'heartbeat'}
    database.finish('abc', {})
    assert state(database, 'abc') == {}


def test_beginning_a_finished_trial_changes_nothing(database):
    database.finish('abc', {'tp': 3})
    database.begin([{**TRIAL, 'recipe': 'other'}, trial('new')])
    assert database.statuses() == {'abc': 'DONE', 'new': 'RUNNING'}
    assert list(database.read('trials', 'abc').recipe) == ['smoke']


def test_a_batch_is_finished_whole_or_not_at_all(database):
    database.begin([trial('b')])
    with pytest.raises(KeyError, match='trial c was never entered'):
        database.finish_many({'abc': {'tp': 1}, 'b': {'tp': 2}, 'c': {'tp': 3}})
    assert database.statuses() == {'abc': 'RUNNING', 'b': 'RUNNING'}
    database.finish_many({'abc': {'tp': 1}, 'b': {'tp': 2}})
    assert database.statuses() == {'abc': 'DONE', 'b': 'DONE'}
    assert database.read('trials', 'b').tp[0] == 2


def test_a_forgotten_trial_leaves_nothing_and_the_others_everything(database):
    database.begin([trial('b')])
    for name in ('abc', 'b'):
        database.record_epoch([{**epoch(1), 'trial_id': name}], [{**prediction('a', 0.1), 'trial_id': name}])
    database.forget(['abc'])
    assert [len(database.read(table, 'abc')) for table in schema.TABLES] == [0, 0, 0]
    assert [len(database.read(table, 'b')) for table in schema.TABLES] == [1, 1, 1]


def test_a_trial_that_goes_on_under_other_settings_has_both_in_its_row(database):
    for engine in ('devices 2, lanes 1', 'devices 2, lanes 1', 'devices 1, lanes 1'):
        database.begin([{'trial_id': 'moved', 'engine': engine, 'code': '1.0', 'recipe': engine}])
    row = database.read('trials', 'moved').iloc[0]
    assert row.engine == 'devices 2, lanes 1; devices 1, lanes 1'
    assert row.code == '1.0'
    assert row.recipe == 'devices 2, lanes 1'


def test_an_epoch_is_a_sign_of_life_of_running_trials_only(database):
    database.begin([trial('pruned')])
    database.prune(['pruned'])
    before = state(database, 'abc')['heartbeat']
    database.record_epoch([epoch(1), {**epoch(1), 'trial_id': 'pruned'}], [])
    assert before < state(database, 'abc')['heartbeat']
    assert state(database, 'pruned') == {}


def test_a_running_trial_is_abandoned_once_its_process_is_gone():
    here, now = socket.gethostname(), time.time()
    assert not merge.is_abandoned(here, os.getpid(), now)  # this process trains it
    assert merge.is_abandoned(here, gone_pid(), now)
    assert not merge.is_abandoned(here, os.getppid(), now)
    assert not merge.is_abandoned('elsewhere', 1, now - merge.STALE_SECONDS / 2)
    assert merge.is_abandoned('elsewhere', 1, now - 2 * merge.STALE_SECONDS)
    assert merge.is_abandoned(here, os.getpid(), now - 1e6)  # an earlier process had the same id
    assert merge.is_abandoned(None, None, None)


@pytest.fixture
def next_schema(monkeypatch):
    """A schema two versions on, that adds a column in its first migration and fills it in the second."""
    columns, now = {**schema.TRIAL_COLUMNS, 'site': 'TEXT'}, schema.SCHEMA_VERSION
    for module in (schema, merge):
        monkeypatch.setattr(module, 'SCHEMA_VERSION', now + 2)
        monkeypatch.setattr(module, 'TRIAL_COLUMNS', columns)
    monkeypatch.setattr(merge, 'BOARD_COLUMNS', (*schema.BOARD_COLUMNS, 'site'))
    monkeypatch.setitem(schema.TABLES, 'trials', (columns, ''))
    fill = "UPDATE trials SET site = 'unknown', digest = NULL"
    migrations = {now: ('ALTER TABLE trials ADD COLUMN site TEXT',), now + 1: (fill,)}
    monkeypatch.setattr(schema, 'MIGRATIONS', migrations)


def test_an_older_schema_is_migrated_on_opening(tmp_path, request):
    path = finished(tmp_path / 'results.sqlite')
    request.getfixturevalue('next_schema')
    for _ in range(2):
        migrated = Results(path)
        assert list(migrated.read('trials', 'abc').site) == ['unknown']
        assert len(migrated.read('predictions', 'abc')) == 2
        migrated.close()


ADDED = {  # since schema 1
    'trials': ('n_val', 'val_loss', 'val_accuracy', 'settings', 'digest'),
    'epochs': ('val_loss', 'val_accuracy'),
}


def test_a_database_of_schema_1_is_read_and_goes_on(tmp_path):
    path = finished(tmp_path / 'results.sqlite')
    with sqlite3.connect(path) as connection:
        for table, columns in ADDED.items():
            for column in columns:
                connection.execute(f'ALTER TABLE {table} DROP COLUMN {column}')
        connection.execute('PRAGMA user_version = 1')
    connection.close()
    assert list(merge.merge([tmp_path]).trials.status) == ['DONE']
    with contextlib.closing(Results(path)) as database:
        database.record_epoch([epoch(9)], [])
        assert database.read('epochs', 'abc').val_loss.isna().all()
        assert database.read('trials', 'abc').digest.isna().all()
    assert list(merge.merge([tmp_path]).trials.status) == ['DONE']


STUDY = pathlib.Path(__file__).parents[2] / 'docs/study'


def test_the_published_databases_are_read_and_stay_as_they_are(tmp_path):
    files = list(STUDY.glob('*/*.sqlite'))
    before = [file.read_bytes() for file in files]
    merged = merge.merge([file.parent for file in files])
    assert len(merged.trials) > 500 and set(merged.trials.status) == {'DONE'}
    assert not any('damaged' in warning for warning in merged.warnings)
    verified = merge.verify([file.parent for file in files])
    assert not verified.damaged and verified.unchecked > 500  # most are older than digests
    assert verified.checked + verified.unchecked >= len(merged.trials)
    assert [file.read_bytes() for file in files] == before
    with contextlib.closing(sqlite3.connect(f'file:{STUDY}/cnn/results.sqlite?mode=ro', uri=True)) as database:
        assert database.execute('PRAGMA user_version').fetchone() == (2,)


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path, request):
    path = finished(tmp_path / 'results.sqlite')
    before = path.read_bytes()
    request.getfixturevalue('next_schema')
    schema.MIGRATIONS[schema.SCHEMA_VERSION - 1] = ('UPDATE trials SET typo = 1',)
    with pytest.raises(UserError, match='no such column: typo'):
        Results(path)
    assert path.read_bytes() == before


def test_an_older_schema_is_read_without_being_changed(tmp_path, request):
    path = finished(tmp_path / 'results.sqlite')
    before = path.read_bytes()
    request.getfixturevalue('next_schema')
    merged = merge.merge([tmp_path])
    assert list(merged.trials.site) == ['unknown']
    assert path.read_bytes() == before


def test_a_database_of_other_columns_is_refused(tmp_path):
    path = finished(tmp_path / 'results.sqlite')
    with sqlite3.connect(path) as connection:
        connection.execute('ALTER TABLE trials DROP COLUMN host')
    connection.close()
    with pytest.raises(UserError, match=r'table trials has other columns \(host\)'):
        Results(path)
    with pytest.raises(UserError, match=r'table trials has other columns \(host\)'):
        merge.merge([tmp_path])


def test_merging_takes_every_database_of_directories_and_shards_once(tmp_path):
    finished(tmp_path / 'one' / 'results.sqlite', 'a', seed=1)
    finished(tmp_path / 'one' / 'shard-1-of-2' / 'results.sqlite', 'b', (0.3,), seed=2)
    finished(tmp_path / 'two' / 'results.sqlite', 'c', seed=3)
    merged = merge.merge([tmp_path / 'one', tmp_path / 'two' / '..' / 'two', tmp_path / 'two'])
    assert list(merged.trials.trial_id) == ['a', 'b', 'c']
    assert list(merged.trials.file) == [
        str(tmp_path / name / 'results.sqlite') for name in ('one', 'one/shard-1-of-2', 'two')
    ]
    ids = merged.trials.trial_id[merged.predictions.trial]
    assert list(zip(ids, merged.predictions.probability, strict=True)) == [
        ('a', 0.1), ('a', 0.9), ('b', 0.3), ('c', 0.1), ('c', 0.9),
    ]  # fmt: skip
    assert merged.warnings == []


@pytest.mark.parametrize('first', ['done', 'other'])
@pytest.mark.parametrize('other', ['begin', 'prune', 'fail', 'diverge'])
def test_a_finished_row_wins_whatever_the_other_database_says(tmp_path, first, other):
    finished(tmp_path / ('a' if first == 'done' else 'b') / 'results.sqlite')
    directory = tmp_path / ('b' if first == 'done' else 'a')
    directory.mkdir()
    database = Results(directory / 'results.sqlite')
    database.begin([trial('abc')])
    {
        'begin': lambda: None,
        'prune': lambda: database.prune(['abc']),
        'fail': lambda: database.fail('abc', 'boom'),
        'diverge': lambda: database.diverge('abc', 'balanced', 1),
    }[other]()
    database.record_epoch([], [prediction('0.png', 0.5)])
    database.close()
    merged = merge.merge([tmp_path / 'a', tmp_path / 'b'])
    assert list(merged.trials.status) == ['DONE']
    assert list(merged.predictions.probability) == [0.1, 0.9]
    assert merged.warnings == []


def test_finished_rows_that_disagree_are_warned_of_by_the_names_of_both_files(tmp_path):
    paths = [
        finished(tmp_path / name / 'results.sqlite', 'abc', values)
        for name, values in (('a', (0.1, 0.9)), ('b', (0.1, 0.9)), ('c', (0.1, 0.65)), ('d', (0.1,)))
    ]
    merged = merge.merge(path.parent for path in paths)
    assert list(merged.predictions.probability) == [0.1, 0.9]  # those of the first
    assert [line.split(' disagree ')[0] for line in merged.warnings] == [
        f'{paths[0]} and {paths[2]}', f'{paths[0]} and {paths[3]}',
    ]  # fmt: skip
    assert 'predictions of 1 trials, by up to 0.25 (one is abc)' in merged.warnings[0]


def test_trials_that_differ_in_their_split_alone_are_warned_of(tmp_path):
    finished(tmp_path / 'a' / 'results.sqlite', 'a')
    finished(tmp_path / 'b' / 'results.sqlite', 'b')
    assert merge.merge([tmp_path / 'a']).warnings == []
    assert 'but another split' in merge.merge([tmp_path / 'a', tmp_path / 'b']).warnings[0]


def test_a_database_is_read_while_another_process_writes_to_it_and_its_bytes_stay(tmp_path):
    path = finished(tmp_path / 'results.sqlite')
    before = path.read_bytes()
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute('BEGIN IMMEDIATE')
    writer.execute("UPDATE trials SET recipe = 'half written'")
    assert list(merge.merge([tmp_path]).trials.recipe) == ['smoke']
    writer.execute('ROLLBACK')
    writer.close()
    merge.merge([tmp_path])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_whose_writer_was_killed_in_a_commit_is_read_and_left_alone(tmp_path):
    path = finished(tmp_path / 'results.sqlite')
    program = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(path)!r}, isolation_level=None)
database.execute('PRAGMA cache_size = 1')  # so that pages of the unfinished transaction reach the file
database.execute('BEGIN')
database.execute("UPDATE trials SET recipe = 'half written'")
for number in range(2000):
    database.execute('INSERT INTO epochs (trial_id, phase, epoch) VALUES (?, ?, ?)', ['abc', 'balanced', number])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, '-c', program], check=False).returncode == -signal.SIGKILL
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(files) == 2  # the database and its journal
    with pytest.raises(sqlite3.OperationalError, match='readonly'):  # it really is in need of a rollback
        sqlite3.connect(f'file:{path}?mode=ro', uri=True).execute('SELECT * FROM trials')
    assert list(merge.merge([tmp_path]).trials.recipe) == ['smoke']
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_a_database_that_was_only_just_made_is_an_empty_one(tmp_path):
    (tmp_path / 'results.sqlite').touch()
    assert merge.merge([tmp_path]).trials.empty


def spoil(path, how):
    if how == 'a newer schema':
        connection = sqlite3.connect(path)
        connection.execute(f'PRAGMA user_version = {schema.SCHEMA_VERSION + 1}')
        connection.close()
    elif how == 'no database':
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[4096:] = b'\xff' * (len(data) - 4096)
        path.write_bytes(b'hello' * 1000 if how == 'not a database' else data)


@pytest.mark.parametrize(
    ('how', 'expected'),
    [
        ('a newer schema', rf'schema {schema.SCHEMA_VERSION + 1}, this version .* Use the version'),
        ('no database', r'no \.sqlite file in it; expected the run directory'),
        ('not a database', r'file is not a database\. Restore it from a copy'),
        ('a corrupt page', r'malformed\. Restore it from a copy'),
    ],
)
def test_a_database_that_cannot_be_read_is_named_in_one_line(tmp_path, how, expected):
    spoil(finished(tmp_path / 'results.sqlite'), how)
    with pytest.raises(UserError, match=expected) as error:
        merge.merge([tmp_path])
    assert str(error.value).startswith(str(tmp_path))
    assert '\n' not in str(error.value)


def test_a_directory_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match='missing: no such directory'):
        merge.merge([tmp_path / 'missing'])


def test_no_text_of_an_export_is_a_formula(database, tmp_path):
    database.begin([{**TRIAL, 'trial_id': 'def', 'recipe': '=1+1', 'dataset': '@x'}])
    names = ['=1+1', '+a.png', '-1.png', '@b', 'plain-=.png']
    database.record_epoch([epoch(1, loss=-0.5)], [prediction(name, 0.1) for name in names])
    database.finish('abc', {'tp': 3})
    database.finish('def', {'tp': 3})
    database.export(tmp_path)
    read = {name: pd.read_csv(tmp_path / f'{name}.csv') for name in ('results', 'curves', 'predictions')}
    assert sorted(read['predictions'].image_id) == sorted(["'=1+1", "'+a.png", "'-1.png", "'@b", 'plain-=.png'])
    assert list(read['results'].set_index('trial_id').loc['def', ['recipe', 'dataset']]) == ["'=1+1", "'@x"]
    assert list(read['curves'].train_loss) == [-0.5]  # a number is no text


def test_what_sweeps_set_is_a_column_of_the_results_of_all_calls(database, tmp_path):
    for trial_id, settings in {'x': {'model': {'dropout': 0.25, 'filters': [2, 3]}}, 'y': {'model': {}}}.items():
        database.begin([{**TRIAL, 'trial_id': trial_id, 'settings': json.dumps(settings)}])
        database.finish(trial_id, {'tp': 3})
    database.export(tmp_path, ['model.dropout', 'model.filters', 'seed'])
    read = pd.read_csv(tmp_path / 'results.csv').set_index('trial_id')
    assert list(read.columns)[-2:] == ['model.dropout', 'model.filters'] and 'seed.1' not in read
    assert read.loc['x', 'model.dropout'] == 0.25 and read.loc['x', 'model.filters'] == '(2, 3)'
    assert np.isnan(read.loc['y', 'model.dropout'])
