"""Copies trials into an experiment tracker, MLflow or Weights & Biases; a trial that is there is not copied again."""

import glob
import importlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from bhcnet_jax.errors import UserError
from bhcnet_jax.records import merge
from bhcnet_jax.records.schema import EPOCH_COLUMNS, SUMMARIZED

ENDED = ('DONE', 'DIVERGED', 'PRUNED', 'FAILED')
FILES = ('config.json', 'env.json', 'data.json')  # of a run directory
PARAMETERS = ('recipe', 'model', 'dataset', 'data_fingerprint', 'scheme', 'folds', 'fold', 'split_seed', 'seed', 'code')
EXPERIMENT = 'bhcnet_jax'
AT_ONCE = 1000  # metrics in a call, the most that MLflow takes
NOTE = 'copied.txt'  # in the folder of a W&B run that waits to be synced: the project, and the status of its trial


class Entry(NamedTuple):
    """What a tracker is told of a trial. curves: a dict of metrics per epoch of all phases, from the first."""

    trial_id: str
    status: str
    parameters: dict[str, str]
    scores: dict[str, float]
    curves: list[dict[str, float]]
    files: list[pathlib.Path]


def log(trials: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]], target: str) -> tuple[int, int]:
    """Copies the trials that have ended. Returns how many were copied, and how many had been there.

    trials: see `Merged`. settings: dotted key -> value, by recipe id. target: 'mlflow:URI' or 'wandb:PROJECT'.
    UserError: another target, a package that is not installed, or a tracker that refuses.
    """
    kind, _, where = target.partition(':')
    if kind not in _TRACKERS or not where:
        raise UserError(f'--log_to={target}: expected mlflow:URI, as in mlflow:sqlite:///runs.db, or wandb:PROJECT.')
    try:
        module = importlib.import_module(kind)
    except ImportError:
        raise UserError(f"--log_to={target} needs {kind}: pip install 'bhcnet_jax[{kind}]'") from None
    try:
        new = [_TRACKERS[kind](module, where, each) for each in _entries(trials[trials.status.isin(ENDED)], settings)]
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # of the tracker, which has classes of its own for them
        raise UserError(f'--log_to={target}: {type(error).__name__}: {error}') from error
    return sum(new), len(new) - sum(new)


def _entries(trials: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Entry]:
    for file, rows in trials.groupby('file'):
        found = [pathlib.Path(file).parent / name for name in FILES]
        with merge.reading(pathlib.Path(file)) as database:
            for row in rows.to_dict('records'):
                columns = [name for name, kind in EPOCH_COLUMNS.items() if kind != 'TEXT' and name != 'epoch']
                query = f'SELECT {", ".join(columns)} FROM epochs WHERE trial_id = ? ORDER BY rowid'
                epochs = database.execute(query, [row['trial_id']]).fetchall()
                own = {name: row[name] for name in PARAMETERS if not pd.isna(row[name])}
                parameters = {**settings.get(row['recipe_id'], {}), **own}
                yield Entry(
                    row['trial_id'],
                    row['status'],
                    {name: str(value) for name, value in parameters.items()},
                    _numbers({name: row[name] for name in (*SUMMARIZED, 'train_seconds')}),
                    [_numbers(dict(zip(columns, values, strict=True))) for values in epochs],
                    [path for path in found if path.is_file()],
                )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are there and finite."""
    return {name: float(value) for name, value in values.items() if not pd.isna(value) and math.isfinite(value)}


def _to_mlflow(mlflow: ModuleType, uri: str, entry: Entry) -> bool:
    client = mlflow.MlflowClient(uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    for run in client.search_runs([experiment], f"tags.trial_id = '{entry.trial_id}'"):
        if run.info.status == 'FINISHED' and run.data.tags['status'] == entry.status:
            return False
        client.delete_run(run.info.run_id)  # half copied, or the trial has gone on since
    tags = {'trial_id': entry.trial_id, 'status': entry.status}
    name = f'{entry.parameters.get("recipe", "trial")} {entry.trial_id[:8]}'
    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    entities = mlflow.entities
    parameters = [entities.Param(name, value) for name, value in entry.parameters.items()]
    steps = [*enumerate(entry.curves, 1), (len(entry.curves), {f'final_{k}': v for k, v in entry.scores.items()})]
    metrics = [entities.Metric(name, value, 0, step) for step, point in steps for name, value in point.items()]
    client.log_batch(run_id, params=parameters)
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + AT_ONCE])
    for path in entry.files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return True


def _to_wandb(wandb: ModuleType, project: str, entry: Entry) -> bool:
    settings, note = wandb.setup().settings, f'{project} {entry.status}\n'
    if settings.mode == 'offline':  # the runs that W&B has cannot be asked
        notes = pathlib.Path(settings.wandb_dir).glob(f'offline-run-*-{glob.escape(entry.trial_id)}/{NOTE}')
        if any(each.read_text(errors='replace') == note for each in notes):
            return False
    # Steps that a run of this id has are kept as they are: copied again, it is the same run.
    run = wandb.init(project=project, id=entry.trial_id, resume='allow', config=entry.parameters,
                     name=f'{entry.parameters.get("recipe", "trial")} {entry.trial_id[:8]}')  # fmt: skip
    is_new = run.summary.get('status') != entry.status
    if is_new:
        for step, point in enumerate(entry.curves, 1):
            run.log(point, step=step)
        run.summary.update({'status': entry.status, **{f'final_{k}': v for k, v in entry.scores.items()}})
        for path in entry.files:
            run.save(str(path), base_path=str(path.parent), policy='now')
    run.finish()
    if run.offline:
        pathlib.Path(run.dir).with_name(NOTE).write_text(note)
    return is_new


_TRACKERS = {'mlflow': _to_mlflow, 'wandb': _to_wandb}
