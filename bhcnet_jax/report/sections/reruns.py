"""Where every number is from, and how to make it again."""

import pathlib
import re
import shlex
from collections.abc import Sequence

import pandas as pd

from bhcnet_jax.plan import written
from bhcnet_jax.report.evidence import Evidence, RunDir
from bhcnet_jax.report.page import Code, Number, Section, Table


def reruns(evidence: Evidence, flags: Sequence[str] = ()) -> Section:
    """Shows code, hardware and data of each run directory, and the commands that make every number again.

    flags: of the report's command.
    """
    heads = ('run directory', 'trials', 'asked for', 'code', 'hardware', 'training time', 'data')
    rows, commands, short = [], [], []
    for each in evidence.run_dirs:
        done = evidence.trials[evidence.trials.status == 'DONE']
        mine = done[[pathlib.Path(file).parent == each.path for file in done.file]]
        asked = _asked(each)
        rows.append(_rerun(each, mine, asked))
        if asked is not None and len(mine) < asked:
            short.append(f'{each.path} has {len(mine)} of {asked} trials')
        found = dict.fromkeys(_here(start['command'], each.path) for start in each.starts if start.get('command'))
        commands += list(found) or [f'# {each.path}: no env.json with its command']
    note = 'Training time is the sum over finished trials, without compilation.'
    told = 'These commands, on the same data and code, train what is missing and end with the same rows; then:'
    if short:
        told = (
            f'Not all trials that were asked for are DONE: {"; ".join(short)}. These commands, on the same data and '
            'code, train the others too, so rows of these directories change; the other rows stay. Then:'
        )
    again = shlex.join(['python', '-m', 'bhcnet_jax.report', *(str(each.path) for each in evidence.run_dirs), *flags])
    seen = [Code('\n'.join(commands)), told, Code(again)]
    return Section('How to rerun every number', [Table('runs', 'Where the numbers are from', heads, rows, note), *seen])


def _asked(run: RunDir) -> int | None:
    """Trials of all starts; None where no file tells, as for the baselines, whose config has no phases."""
    config = run.config.get('config', {})
    return written.asked(config, run.starts) if config.get('phases') and run.starts else None


def _here(command: str, path: pathlib.Path) -> str:
    """A command with the run directory where it lies now; a shard's lies in that of its sweep."""
    try:
        words = shlex.split(command)
    except ValueError:  # not as a shell takes it
        return command
    words = [re.sub(r'^(--?(?:config\.)?sweep=)\s+', r'\1', word) for word in words]
    flag = next((place for place, word in enumerate(words) if re.fullmatch('--?workdir(=.*)?', word, re.DOTALL)), None)
    if flag is not None:
        del words[flag : flag + 1 + ('=' not in words[flag])]
    is_shard = any(re.match('--?shard(=|$)', word) for word in words)
    return shlex.join([*words, f'--workdir={path.parent if is_shard else path}'])


def _rerun(run: RunDir, done: pd.DataFrame, asked: int | None) -> list[str | Number]:
    return [
        str(run.path),
        Number(len(done), style='whole'),
        '-' if asked is None else Number(asked, style='whole'),
        _distinct(done.code) or _distinct(pd.Series([start.get('code') for start in run.starts])),
        _distinct(done.hardware) or 'not recorded',
        f'{done.train_seconds.sum():.0f} s' if done.train_seconds.notna().any() else 'not recorded',
        _distinct(done.data_fingerprint.str[:12]),
    ]


def _distinct(values: pd.Series) -> str:
    return '; '.join(map(str, values.dropna().unique()))
