"""Trials copied into experiment trackers: real ones, where they are installed."""

import contextlib
import importlib.util
import sqlite3

import pytest

import studies
from bhcnet_jax import results
from bhcnet_jax.records import merge


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f'not installed: {", ".join(missing)}')


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    return studies.write(tmp_path_factory.mktemp('study'), seeds=1)[0]


def log(run_dir, target, capsys):
    results.main([str(run_dir), f'--log_to={target}'])
    return capsys.readouterr().out.splitlines()[-1]


# The tracker's own code warns of what it will do otherwise some day.
@needs('mlflow', 'sqlalchemy', 'alembic')
@pytest.mark.filterwarnings('default')
def test_mlflow_has_every_trial_once_with_settings_scores_curves_and_files(run_dir, tmp_path, capsys, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    uri = f'sqlite:///{tmp_path}/store.db'
    assert log(run_dir, f'mlflow:{uri}', capsys) == f'mlflow:{uri}: 16 trials copied, 0 were there'
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name('bhcnet_jax').experiment_id
    trials = merge.merge([run_dir]).trials.set_index('trial_id')
    runs = client.search_runs([experiment])
    assert sorted(run.data.tags['trial_id'] for run in runs) == sorted(trials.index)
    for run in runs:
        row = trials.loc[run.data.tags['trial_id']]
        assert run.data.metrics['final_accuracy'] == pytest.approx(row.accuracy)
        assert (run.data.params['seed'], run.data.params['fold']) == (str(row.seed), str(row.fold))
        assert run.data.params['model.dropout'] in ('0.5', '0.25')
    history = client.get_metric_history(runs[0].info.run_id, 'train_loss')
    assert [point.step for point in history] == list(range(1, 2 * studies.EPOCHS + 1))
    assert {each.path for each in client.list_artifacts(runs[0].info.run_id)} == {
        'config.json', 'env.json', 'data.json'}  # fmt: skip
    # Again nothing is copied, but for a run that was interrupted.
    assert log(run_dir, f'mlflow:{uri}', capsys).endswith(': 0 trials copied, 16 were there')
    with contextlib.closing(sqlite3.connect(tmp_path / 'store.db')) as store, store:
        store.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", [runs[0].info.run_id])
    assert log(run_dir, f'mlflow:{uri}', capsys).endswith(': 1 trials copied, 15 were there')
    assert len(client.search_runs([experiment])) == 16


@needs('wandb')
@pytest.mark.filterwarnings('default')
def test_wandb_takes_every_trial_offline_once_under_its_id(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')

    def copied(project):
        one = ['--where=fold=0', f'--where=recipe_id={first_recipe(run_dir)}']
        results.main([str(run_dir), *one, f'--log_to=wandb:{project}'])
        return capsys.readouterr().out.splitlines()[-1]

    assert copied('x') == 'wandb:x: 1 trials copied, 0 were there'
    (written,) = tmp_path.glob('wandb/offline-run-*/*.wandb')
    assert merge.merge([run_dir]).trials.trial_id[0] in written.name
    assert copied('x') == 'wandb:x: 0 trials copied, 1 were there'
    assert list(tmp_path.glob('wandb/offline-run-*/*.wandb')) == [written]
    assert copied('other') == 'wandb:other: 1 trials copied, 0 were there'
    # Again nothing is copied, but for a run that was interrupted.
    written.with_name('copied.txt').unlink()
    assert copied('x') == 'wandb:x: 1 trials copied, 0 were there'


def first_recipe(run_dir):
    return merge.merge([run_dir]).trials.recipe_id[0]


@pytest.mark.parametrize('target', ['mlflow', 'nix:x', 'wandb:'])
def test_another_target_is_refused(run_dir, target, refusal):
    assert 'expected mlflow:URI' in refusal(results.main, [str(run_dir), f'--log_to={target}'])


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(run_dir, monkeypatch, refusal):
    monkeypatch.setitem(__import__('sys').modules, 'mlflow', None)
    line = refusal(results.main, [str(run_dir), '--log_to=mlflow:sqlite:///x.db'])
    assert "needs mlflow: pip install 'bhcnet_jax[mlflow]'" in line
