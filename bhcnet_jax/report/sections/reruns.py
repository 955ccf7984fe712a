"""Where every number is from, and how to make it again."""

import pathlib
import re
import shlex

import pandas as pd

from bhcnet_jax.report.evidence import Evidence, RunDir
from bhcnet_jax.report.page import Code, Number, Section, Table


def reruns(evidence: Evidence) -> Section:
    """Shows code, hardware and data of each run directory, and the commands that make every number again."""
    heads = ('run directory', 'trials', 'code', 'hardware', 'training time', 'data')
    rows, commands = [], []
    for each in evidence.run_dirs:
        done = evidence.trials[evidence.trials.status == 'DONE']
        rows.append(_rerun(each, done[[pathlib.Path(file).parent == each.path for file in done.file]]))
        found = dict.fromkeys(_here(start['command'], each.path) for start in each.starts if start.get('command'))
        commands += list(found) or [f'# {each.path}: no env.json with its command']
    note = 'Training time is the sum over finished trials, without compilation.'
    told = 'These commands, on the same data and code, train what is missing and end with the same rows; then:'
    again = f'python -m bhcnet_jax.report {evidence.paths}'
    seen = [Code('\n'.join(commands)), told, Code(again)]
    return Section('How to rerun every number', [Table('runs', 'Where the numbers are from', heads, rows, note), *seen])


def _here(command: str, path: pathlib.Path) -> str:
    """A command with the run directory where it lies now; a shard's lies in that of its sweep."""
    try:
        words = shlex.split(command)
    except ValueError:  # not as a shell takes it
        return command
    flag = next((place for place, word in enumerate(words) if re.fullmatch('--?workdir(=.*)?', word, re.DOTALL)), None)
    if flag is not None:
        del words[flag : flag + 1 + ('=' not in words[flag])]
    is_shard = any(re.match('--?shard(=|$)', word) for word in words)
    return shlex.join([*words, f'--workdir={path.parent if is_shard else path}'])


def _rerun(run: RunDir, done: pd.DataFrame) -> list[str | Number]:
    return [
        str(run.path),
        Number(len(done), style='whole'),
        _distinct(done.code) or _distinct(pd.Series([start.get('code') for start in run.starts])),
        _distinct(done.hardware) or 'not recorded',
        f'{done.train_seconds.sum():.0f} s' if done.train_seconds.notna().any() else 'not recorded',
        _distinct(done.data_fingerprint.str[:12]),
    ]


def _distinct(values: pd.Series) -> str:
    return '; '.join(map(str, values.dropna().unique()))
