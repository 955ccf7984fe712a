"""One call from a config to a finished run directory: data -> trials -> batches of lanes -> results."""

import contextlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from bhcnet_jax import machine
from bhcnet_jax.display import summary
from bhcnet_jax.errors import UserError
from bhcnet_jax.plan import sweep
from bhcnet_jax.plan.study import Study
from bhcnet_jax.plan.trial import Identity
from bhcnet_jax.records import merge, run_files
from bhcnet_jax.records.database import Results
from bhcnet_jax.run import estimate, places, pruning, run_dir, scheduler
from bhcnet_jax.run.scheduler import ENDED
from bhcnet_jax.training import engine


class Options(NamedTuple):
    """How to run what a config says; none of it changes a result.

    workdir: the run directory; '': runs/<config.recipe>-<data set>. command: what the user typed, for env.json.
    sweep: axes, see `sweep.parse`; '': config.sweep. shard: 'i/n', the share of the trials to train; '': all.
    prune: see `pruning.parse`; '': every trial is trained to its end.
    rerun: which trials to train again: 'failed', 'diverged', 'all', or the first characters of their ids; '': none.
    dry_run: print what would be trained, and stop. estimate: a dry run also prints what it would cost.
    fail_fast: stop at the first trial that fails or diverges.
    """

    workdir: str = ''
    command: str = ''
    sweep: str = ''
    shard: str = ''
    prune: str = ''
    rerun: str = ''
    dry_run: bool = False
    estimate: bool = True
    fail_fast: bool = False


def run(config: ConfigDict, options: Options) -> bool:
    """Trains the trials of a config that the run directory lacks. Returns whether all trials ended well.

    A config without a sweep is one trial. config: see `configs/base.py`; it is not written to.

    Raises:
      UserError: one line for the user.
      lane_batch.Stopped: on SIGTERM or SIGINT, at the end of an epoch.
    """
    machine.set_up_jax()
    machine.refuse_missing_devices()
    shard = sweep.parse_shard(options.shard or '1/1')
    rule = pruning.parse(options.prune)
    study = Study(config, options.sweep)
    spread = engine.choose_spread(study.config, alone=not (options.sweep or config.sweep or config.trials))
    wanted = study.trials(shard)
    pruning.check(rule, wanted, study.config.split.val_folds)
    path = _path(study, options)
    if options.dry_run:  # it only reads, so another process may be training here
        run_dir.check(path, config, study.image_set, study.swept)
        statuses = merge.look(path)
        again = _to_rerun(wanted, options, statuses) | _damaged(wanted, merge.damaged(path))
        missing = _describe(study, wanted, statuses, again)
        if options.estimate and missing:
            shared = [each for each in study.pretrainings(missing) if statuses.get(each.trial_id) != 'PRETRAINED']
            print(estimate.text(study, [*shared, *missing], spread), flush=True)
        return True
    with (
        run_dir.claim(path, config, study.image_set, study.swept),
        contextlib.closing(Results(path / 'results.sqlite')) as database,
    ):
        statuses = database.statuses()
        again = _to_rerun(wanted, options, statuses) | _damaged(wanted, database.damaged())
        missing = _describe(study, wanted, statuses, again)
        places.forget(path, again)  # before their rows, so that a kill in between leaves no old weights to go on from
        database.forget(again)
        run_dir.record_start(path, options.command, options.sweep)
        single = study.plan(wanted[0]) if len(wanted) == 1 else None
        run_dir.record_data(path, study.image_set, study.grouping, single, study.resolution(wanted))
        work = scheduler.Scheduler(study, wanted, path, database, spread, rule, options.fail_fast)
        is_told = work.run() if missing else False
        database.export(path, run_files.config(path)['swept'])  # of all calls here
        summary.print_end(wanted, single, study.image_set, database, path, is_told)
        statuses = database.statuses()
    return all(statuses.get(each.trial_id) in ('DONE', 'PRUNED') for each in wanted)


def _describe(
    study: Study, wanted: Sequence[Identity], statuses: Mapping[str, str], again: Collection[str]
) -> list[Identity]:
    """Prints which trials are there and which are missing. Returns the missing ones. again: ids to be trained again."""
    kept = {trial_id: status for trial_id, status in statuses.items() if trial_id not in again}
    missing = [each for each in wanted if kept.get(each.trial_id) not in ENDED]
    summary.describe(study, wanted, missing, kept)
    return missing


def _path(study: Study, options: Options) -> pathlib.Path:
    """The run directory. Each shard has its own inside it, so that no two processes write to one file."""
    path = pathlib.Path(options.workdir or f'runs/{study.config.recipe}-{study.image_set.label}')
    return path / f'shard-{options.shard.replace("/", "-of-")}' if options.shard else path


def _damaged(wanted: Sequence[Identity], damaged: Sequence[str]) -> set[str]:
    """Ids of the wanted trials that are not as they were written. Says what becomes of these and of the others."""
    ids = {each.trial_id for each in wanted}
    for trial_id in damaged:
        what = 'it is trained again' if trial_id in ids else 'it is left out of the csv files'
        print(f'warning: trial {trial_id} is not as it was written; {what}.')
    return ids.intersection(damaged)


def _to_rerun(wanted: Sequence[Identity], options: Options, statuses: Mapping[str, str]) -> set[str]:
    """Ids of the wanted trials that are to be trained again, and of the pre-trainings that they need anew."""
    chosen = _chosen_to_rerun(wanted, options, statuses)
    lost = ('FAILED', 'DIVERGED') if options.rerun != 'all' else (*ENDED, 'PRETRAINED')
    return chosen | {
        each.starts_from for each in wanted if each.trial_id in chosen and statuses.get(each.starts_from) in lost
    }


def _chosen_to_rerun(wanted: Sequence[Identity], options: Options, statuses: Mapping[str, str]) -> set[str]:
    rerun = options.rerun
    ids = {each.trial_id for each in wanted if each.trial_id in statuses}
    if rerun in ('', 'all'):
        return ids if rerun else set()
    if rerun in ('failed', 'diverged'):
        return {trial_id for trial_id in ids if statuses[trial_id] == rerun.upper()}
    chosen = {trial_id for trial_id in ids if trial_id.startswith(rerun)}
    if not chosen and not options.shard:  # another shard may have it
        raise UserError(f'--rerun={rerun}: no trial here has an id that begins so; expected failed, diverged or all.')
    return chosen
