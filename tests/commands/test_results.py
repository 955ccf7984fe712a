import argparse
import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics as reference

import studies
from bhcnet_jax import results
from bhcnet_jax.display import figures
from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge, recipes
from bhcnet_jax.records.database import Results
from bhcnet_jax.statistics import bootstrap, metrics


def scores(seeds=3, images=60, seed=0):
    """Labels bool [N], and probabilities [S, N] that agree with them more often than not."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 2 == 1
    shared = generator.normal(size=images)  # the seeds are wrong on the same images
    logits = 2 * labels - 1 + shared + 0.5 * generator.normal(size=(seeds, images))
    return labels, 1 / (1 + np.exp(-logits))


def test_means_and_spreads_are_those_of_scikit_learn_per_seed():
    labels, probabilities = scores()
    found = recipes.estimate(labels, probabilities)
    per_seed = {
        'accuracy': [reference.accuracy_score(labels, each >= 0.5) for each in probabilities],
        'sensitivity': [reference.recall_score(labels, each >= 0.5) for each in probabilities],
        'specificity': [reference.recall_score(~labels, each < 0.5) for each in probabilities],
        'auc': [reference.roc_auc_score(labels, each) for each in probabilities],
    }
    for name, values in per_seed.items():
        assert found[name].mean == pytest.approx(np.mean(values))
        assert found[name].spread == pytest.approx(np.std(values, ddof=1))


def test_intervals_are_those_of_a_plain_bootstrap_over_images():
    labels, probabilities = scores()
    generator = np.random.default_rng(1)
    drawn = {'accuracy': [], 'auc': []}
    for _ in range(2000):
        images = generator.integers(0, len(labels), len(labels))
        part, each = labels[images], probabilities[:, images]
        drawn['accuracy'].append(np.mean((each >= 0.5) == part))
        u = stats.mannwhitneyu(each[:, part], each[:, ~part], axis=1).statistic
        drawn['auc'].append(np.mean(u / (part.sum() * (~part).sum())))
    found = recipes.estimate(labels, probabilities)
    for name, values in drawn.items():
        # Two bootstraps of 2000 draws differ by some thousandths at their 2.5 % ends.
        expected = np.percentile(values, (2.5, 97.5))
        np.testing.assert_allclose([found[name].low, found[name].high], expected, atol=0.015)


def test_a_single_seed_has_wilsons_interval_and_no_spread():
    labels, probabilities = scores(seeds=1)
    found = recipes.estimate(labels, probabilities)['accuracy']
    hits = int(((probabilities[0] >= 0.5) == labels).sum())
    assert (found.low, found.high) == pytest.approx(metrics.wilson(hits, len(labels)))
    assert np.isnan(found.spread)


def test_perfect_scores_have_an_interval_below_one():
    labels = np.arange(20) % 2 == 1
    found = recipes.estimate(labels, np.stack([labels, labels]).astype(float))
    assert (found['accuracy'].mean, found['accuracy'].high) == pytest.approx((1.0, 1.0))
    assert found['accuracy'].low == pytest.approx(0.839, abs=0.001)  # Wilson, 20 of 20
    assert np.isnan(found['auc'].low)


def test_a_seed_that_lacks_images_counts_with_those_it_has():
    labels, probabilities = scores(seeds=2)
    probabilities[1, :30] = np.nan
    found = recipes.estimate(labels, probabilities)['accuracy']
    whole, half = np.mean((probabilities[0] >= 0.5) == labels), np.mean((probabilities[1, 30:] >= 0.5) == labels[30:])
    assert found.mean == pytest.approx((whole + half) / 2)


def write(directory, seeds, recipe='smoke', dataset='head_ct', folds=2):
    """A run directory with a finished 2-fold trial pair for every seed."""
    directory.mkdir()
    with contextlib.closing(Results(directory / 'results.sqlite')) as database:
        for seed in seeds:
            labels, probabilities = scores(1, 40, seed)
            for fold in range(folds):
                trial_id = f'{recipe}-{seed}-{fold}'
                row = {'trial_id': trial_id, 'recipe': recipe, 'recipe_id': recipe, 'model': 'cnn', 'dataset': dataset}
                row |= {'seed': seed, 'fold': fold, 'folds': 2, 'scheme': 'kfold', 'data_fingerprint': f'of {dataset}'}
                database.begin([row])
                predictions = [
                    {'trial_id': trial_id, 'image_id': f'{image:03}', 'label': int(labels[image]),
                     'probability': probabilities[0, image], 'dataset': dataset}
                    for image in range(fold, 40, 2)
                ]  # fmt: skip
                database.record_epoch([], predictions)
                database.finish(trial_id, {'accuracy': 0.5})
    return directory


def command(capsys, *arguments):
    results.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_shards_are_merged_and_no_trial_counts_twice(tmp_path, capsys):
    shards = [write(tmp_path / 'a', [0, 1]), write(tmp_path / 'b', [1, 2])]  # seed 1 is in both
    board = recipes.make(merge.merge(shards))
    assert (board.trials[0], board.seeds[0], board.images[0], board.folds[0]) == (6, 3, 40, '2/2')
    output = command(capsys, *shards, f'--csv={tmp_path}/all.csv', f'--parquet={tmp_path}/all.parquet')
    assert 'Trials: 6 DONE' in output
    assert 'warning' not in output
    assert len(pd.read_csv(tmp_path / 'all.csv')) == len(pd.read_parquet(tmp_path / 'all.parquet')) == 6


def test_shards_that_disagree_are_named(tmp_path, capsys):
    shards = [write(tmp_path / 'a', [0]), write(tmp_path / 'b', [0])]
    with contextlib.closing(sqlite3.connect(shards[1] / 'results.sqlite')) as database, database:
        database.execute("UPDATE predictions SET probability = 0.123 WHERE image_id = '007'")
        database.execute('UPDATE trials SET digest = NULL')  # as if it had been written so
    output = ''.join(command(capsys, *shards).split())  # a path may be broken at the end of a line
    assert 'disagreeonthepredictionsof1trials' in output
    assert 'a/results.sqlite' in output and 'b/results.sqlite' in output


CHANGES = (
    "UPDATE predictions SET probability = probability + 1e-15 WHERE image_id = '006' AND trial_id = '{}'",
    "UPDATE trials SET seed = 7 WHERE trial_id = '{}'",
    "UPDATE trials SET accuracy = X'00ff' WHERE trial_id = '{}'",
    "UPDATE trials SET recipe = CAST(X'ff' AS TEXT) WHERE trial_id = '{}'",
    "UPDATE trials SET status = 'DONF' WHERE trial_id = '{}'",
    "DELETE FROM predictions WHERE image_id = '006' AND trial_id = '{}'",
    "INSERT INTO epochs (trial_id, phase, epoch) VALUES ('{}', 'balanced', 1)",
)


@pytest.mark.parametrize('change', CHANGES)
def test_a_finished_trial_that_changed_is_left_out_and_named(tmp_path, capsys, change):
    directory = write(tmp_path / 'a', [0])
    command(capsys, '--verify', directory)
    with contextlib.closing(sqlite3.connect(directory / 'results.sqlite')) as database, database:
        changed, kept = (row[0] for row in database.execute('SELECT trial_id FROM trials ORDER BY fold'))
        database.execute(change.format(changed))
    merged = merge.merge([directory])
    assert list(merged.trials.trial_id) == [kept] and set(merged.predictions.trial) == {merged.trials.index[0]}
    (warning,) = merged.warnings
    assert f'a/results.sqlite: trial {changed} is damaged' in warning and warning.endswith('It is left out.')
    assert set(merge.look(directory)) >= {kept}
    with pytest.raises(SystemExit) as end:
        command(capsys, '--verify', directory)
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and f'trial {changed} is damaged' in lines[0]
    assert lines[1].startswith('2 trials compared with their digests, 1 damaged; 0 finished')


def test_trials_of_an_earlier_version_are_counted_as_without_a_digest(tmp_path, capsys):
    directory = write(tmp_path / 'a', [0])
    with contextlib.closing(sqlite3.connect(directory / 'results.sqlite')) as database, database:
        database.execute('UPDATE trials SET digest = NULL')
    assert '0 trials compared with their digests, 0 damaged; 2 finished' in command(capsys, '--verify', directory)


def test_images_that_look_alike_are_resampled_together(tmp_path):
    directory, images = write(tmp_path / 'a', [0]), [f'{image:03}' for image in range(40)]
    single = recipes.make(merge.merge([directory])).iloc[0]
    groups = [images[first : first + 8] for first in range(0, 40, 8)]
    data = {'dataset': 'head_ct', 'fingerprint': 'of head_ct', 'images': {'0': 1, '1': 1}, 'pairs': []}
    data['groups'] = groups
    (directory / 'data.json').write_text(json.dumps(data))
    grouped = recipes.make(merge.merge([directory])).iloc[0]
    labels, probabilities = scores(1, 40, 0)
    expected = bootstrap.bootstrap(labels, probabilities, groups=np.arange(40) // 8, draws=recipes.DRAWS)
    for name in ('accuracy', 'auc'):
        found = (grouped[name], grouped[f'{name}_low'], grouped[f'{name}_high'])
        assert found == pytest.approx(expected[name][:3])
        assert single[name] == grouped[name]
    assert single.accuracy_low != grouped.accuracy_low


def test_groups_that_cannot_be_read_are_named(tmp_path):
    directory = write(tmp_path / 'a', [0])
    (directory / 'data.json').write_text('{"fingerprint": ')
    with pytest.raises(UserError, match=r'a/data.json cannot be read .*Restore it from a copy'):
        recipes.make(merge.merge([directory]))


def test_missing_folds_are_shown(tmp_path):
    assert recipes.make(merge.merge([write(tmp_path / 'a', [0], folds=1)])).folds[0] == '1/2'


def test_rows_are_filtered_and_sorted(tmp_path, capsys):
    directories = [write(tmp_path / 'a', [0], 'first'), write(tmp_path / 'b', [1], 'second')]
    output = command(capsys, *directories, '--where', 'recipe=second')
    assert 'second' in output and 'first' not in output
    board = recipes.make(merge.merge(directories)).sort_values('auc', ascending=False)
    output = command(capsys, *directories, '--sort', 'auc')
    assert output.index(board.recipe.iloc[0]) < output.index(board.recipe.iloc[1])


def test_a_leaderboard_of_synthetic_images_says_so(tmp_path, capsys):
    assert 'PHANTOM (synthetic images)' in command(capsys, write(tmp_path / 'a', [0], dataset='PHANTOM'))


def test_a_database_that_is_being_written_is_read_and_left_alone(tmp_path, capsys):
    directory = write(tmp_path / 'a', [0])
    before = (directory / 'results.sqlite').read_bytes()
    with contextlib.closing(sqlite3.connect(directory / 'results.sqlite', isolation_level=None)) as writer:
        writer.execute('BEGIN IMMEDIATE')
        writer.execute("UPDATE trials SET recipe = 'unfinished business'")
        assert 'smoke' in command(capsys, directory)
        writer.execute('ROLLBACK')
    assert (directory / 'results.sqlite').read_bytes() == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--where', 'nix=1'], 'expected column=value'),
        (['--where', 'seed=first'], 'seed is a number'),
        (['--sort', 'nix'], 'no such column'),
        (['--csv', '/proc/nix.csv'], 'cannot be written'),
    ],
)
def test_a_wrong_argument_ends_in_one_line(tmp_path, refusal, arguments, message):
    assert message in refusal(results.main, [str(write(tmp_path / 'a', [0])), *arguments])


def test_the_bootstrap_is_exact_also_with_ties_and_missing_images(monkeypatch):
    labels, probabilities = scores(seeds=3, images=47)
    probabilities = probabilities.round(1)
    probabilities[1, :12] = np.nan
    monkeypatch.setattr(recipes, 'DRAWS', 150)
    monkeypatch.setattr(bootstrap, '_PART_SIZE', 50)  # several parts
    weights = bootstrap._resample(47, 150, 0)
    drawn = {'sensitivity': [], 'auc': []}
    for weight in weights:
        values = {name: [] for name in drawn}
        for each in probabilities:
            seen = ~np.isnan(each)
            part = {'sample_weight': weight[seen]}
            values['sensitivity'].append(reference.recall_score(labels[seen], each[seen] >= 0.5, **part))
            values['auc'].append(reference.roc_auc_score(labels[seen], each[seen], **part))
        for name in drawn:
            drawn[name].append(np.mean(values[name]))
    found = recipes.estimate(labels, probabilities)
    for name, values in drawn.items():
        assert (found[name].low, found[name].high) == pytest.approx(np.percentile(values, (2.5, 97.5)))


def test_seeds_that_err_on_the_same_images_do_not_narrow_the_interval():
    labels, probabilities = scores(seeds=1)
    one, ten = (recipes.estimate(labels, probabilities.repeat(seeds, axis=0))['accuracy'] for seeds in (2, 10))
    assert (one.low, one.high) == (ten.low, ten.high)
    assert ten.spread == pytest.approx(0)
    wilson = recipes.estimate(labels, probabilities)['accuracy']
    assert ten.high - ten.low == pytest.approx(wilson.high - wilson.low, rel=0.1)


def test_a_class_without_images_leaves_its_metrics_undefined():
    found = recipes.estimate(np.ones(4, bool), np.full((2, 4), [0.9, 0.8, 0.2, 0.7]))
    assert found['sensitivity'].mean == found['accuracy'].mean == 0.75
    assert all(np.isnan(found[name][:4]).all() for name in ('specificity', 'auc'))


def test_one_recipe_on_two_data_sets_is_two_tables(tmp_path, capsys):
    output = command(capsys, write(tmp_path / 'a', [0]), write(tmp_path / 'b', [1], dataset='PHANTOM'))
    real, synthetic = output.index('head_ct, fingerprint'), output.index('PHANTOM (synthetic images), fingerprint')
    assert real != synthetic
    assert output.count('smoke') == 2


def test_recipes_and_data_sets_are_shown_as_they_are_called(tmp_path, capsys):
    directories = [
        write(tmp_path / 'a', [0], 'wide[a]', dataset='my [b]set'),
        write(tmp_path / 'b', [0], '[/x]', dataset='[/b]'),
    ]
    output = command(capsys, *directories)
    assert all(name in output for name in ('wide[a]', '[/x]', 'my [b]set, fingerprint', '[/b], fingerprint'))


def test_recipes_of_one_label_are_told_apart(tmp_path):
    directories = [write(tmp_path / 'a', [0], 'first'), write(tmp_path / 'b', [0], 'second')]
    merged = merge.merge(directories)
    merged.trials['recipe'] = 'same'
    assert list(recipes.make(merged).recipe) == ['same first', 'same second']


def test_running_trials_of_a_lost_process_are_counted(tmp_path, capsys):
    directory = write(tmp_path / 'a', [0])
    with contextlib.closing(Results(directory / 'results.sqlite')) as database:
        database.begin([{'trial_id': name} for name in 'ab'])
        database._database.execute("UPDATE trials SET host = 'elsewhere', heartbeat = 0 WHERE trial_id = 'a'")
    assert 'Trials: 2 DONE, 2 RUNNING (RUNNING: the process of 1 is gone)' in command(capsys, directory)


def test_watching_follows_until_it_is_interrupted(tmp_path):
    directory = write(tmp_path / 'a', [0])
    program = (
        'import signal; from bhcnet_jax import results; results.WATCH_SECONDS = 0.1; '
        'signal.signal(signal.SIGINT, signal.default_int_handler); results.main()'
    )
    child = subprocess.Popen(
        [sys.executable, '-c', program, directory, '--watch'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(child, 'Trials: 2 DONE')
        with contextlib.closing(Results(directory / 'results.sqlite')) as database:
            database.begin([{'trial_id': 'new'}])
        wait_for(child, 'Trials: 2 DONE, 1 RUNNING')
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[1] == ''
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


def wait_for(child, start):
    assert any(line.startswith(start) for line in child.stdout), child.stderr.read()


def test_the_command_of_the_readme_answers(tmp_path):
    answer = subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.results', tmp_path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith(f'error: {tmp_path}: no .sqlite file in it')
    assert answer.stderr.count('\n') == 1


@pytest.fixture
def swept(tmp_path):
    """Run directory of a sweep, written as by a run: four networks that differ in dropout and learning rate."""
    return studies.write(tmp_path / 'study')[0]


def test_recipes_of_a_sweep_are_called_by_what_was_swept_in_table_and_csv(swept, tmp_path, capsys):
    output = ' '.join(command(capsys, swept, f'--csv={tmp_path}/all.csv').split())
    assert re.search(r'peak_lr 0\.01\b', output) and re.search(r'dropout\s+0\.25\b', output)
    written = pd.read_csv(tmp_path / 'all.csv')
    assert written.recipe.nunique() == 4
    assert set(zip(written['model.dropout'], written['optimizer.peak_lr'], strict=True)) == {
        (0.5, 1e-3), (0.25, 1e-3), (0.5, 1e-2), (0.25, 1e-2)}  # fmt: skip


@pytest.mark.parametrize('column', ['model.dropout', 'brier', 'val_loss', 'sensitivity', 'train_seconds'])
def test_any_column_sorts_and_is_shown_at_80_columns(swept, capsys, monkeypatch, column):
    monkeypatch.setenv('COLUMNS', '80')
    output = command(capsys, swept, '--sort', column)
    assert max(map(len, output.splitlines())) <= 80
    heading = {'sensitivity': 'sensi-'}.get(column, column.split('_')[-1].split('.')[-1])
    assert heading in output
    board = results._look(argparse.Namespace(workdirs=[swept], where=[], sort=column)).rows
    values = board[column].tolist()
    assert values == sorted(values, reverse=column not in results.LOSSES)
    # No number is broken over lines.
    shown = {f'{100 * row.accuracy_low:.1f}-{100 * row.accuracy_high:.1f}' for row in board.itertuples()}
    assert all(interval in output for interval in shown)


def test_pruned_trials_are_told_with_where_they_stopped(tmp_path, capsys):
    directory = write(tmp_path / 'a', [0])
    with contextlib.closing(Results(directory / 'results.sqlite')) as database:
        for name, epochs in (('x', 4), ('y', 4), ('z', 8)):
            database.begin([{'trial_id': name, 'recipe': 'weak', 'recipe_id': 'weak'}])
            for epoch in range(epochs):
                database.record_epoch([{'trial_id': name, 'phase': 'balanced', 'epoch': epoch}], [])
            database._database.execute("UPDATE trials SET status = 'PRUNED' WHERE trial_id = ?", [name])
    output = command(capsys, directory)
    assert 'PRUNED after 4 epochs: weak, 2 of its trials' in output
    assert 'PRUNED after 8 epochs: weak, 1 of its trials' in output


def test_a_holdout_that_is_drawn_again_is_one_row_and_not_as_many_recipes(tmp_path, capsys):
    directory = studies.write_holdouts(tmp_path, {4: [16, 12, 15], 24: [19, 20, 11]})
    output = command(capsys, directory)
    assert re.search(r'balanced 4 epochs +3 +20 +71\.7 +60\.0 +75\.0 +80\.0', output)
    assert re.search(r'balanced 24 epochs +3 +20 +83\.3 +55\.0 +95\.0 +100\.0', output)
    assert 'Mean over seeds' not in output


def test_a_run_directory_whose_config_cannot_be_read_is_shown_without_settings(swept, capsys):
    (swept / 'config.json').write_text('{"config": ')
    plain = command(capsys, swept)
    assert 'imbalanced (' in plain and 'dropout' not in plain
    (swept / 'config.json').write_text('[]')
    assert command(capsys, swept) == plain


@pytest.mark.parametrize(('key', 'score'), [('model.dropout', 'auc'), ('optimizer.peak_lr', 'val_loss')])
def test_a_score_is_drawn_against_a_swept_key(swept, tmp_path, capsys, monkeypatch, key, score):
    monkeypatch.chdir(tmp_path)
    assert f'Written: plot-{key}.png' in command(capsys, swept, f'--plot={key}', f'--sort={score}')
    with Image.open(tmp_path / f'plot-{key}.png') as drawn:
        assert drawn.format == 'PNG' and min(drawn.size) > 300
        assert len(np.unique(np.asarray(drawn.convert('L')))) > 10  # something is drawn


def test_a_plot_over_a_key_that_was_not_swept_names_those_that_were(swept, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refusal(results.main, [str(swept), '--plot=nix'])
    assert '--plot=nix: the recipes do not differ in it; ' in line and 'model.dropout' in line
    assert not list(tmp_path.glob('*.png'))


def test_words_and_numbers_of_a_key_have_an_axis_each(tmp_path):
    board = pd.DataFrame({'accuracy': [0.5, 0.7, 0.6], 'accuracy_low': 0.4, 'accuracy_high': 0.8})
    for values in (['none', 'batch', 'group'], [1e-4, 1e-3, 1e-2], [True, False, True], ['(8, 16)', '(2,)', '(2,)']):
        path = figures.swept(board.assign(key=values), 'key', 'accuracy', tmp_path / 'x.png', 'PHANTOM')
        assert path.stat().st_size > 5000
