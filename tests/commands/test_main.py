import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from bhcnet_jax import models
from runs import child_environment, flags, fork_server, numbers, xla_flags


def run(*arguments, cwd=None, **variables):
    """Runs the program in a real process; flags that are wrong are answered before JAX is imported."""
    return subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.main', *arguments], capture_output=True, text=True, timeout=60, cwd=cwd,
        env={**os.environ, 'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': '', **variables}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'messages'),
    [
        ([], ['--config is missing', 'imbalanced']),
        (['--config=nix'], ['--config=nix: no such file', 'imbalanced, lstm_balanced']),
        (['--config', 'missing/file.py'], ['--config=missing/file.py: no such file']),
        (['--config=smoke', '--config.balanced.epoch=3'], ['--config.balanced.epoch: no such key', '"epochs"']),
        (['--config=smoke', '--config.nix.epochs=3'], ['--config.nix.epochs: no such key']),
        (['--config=smoke', '--config.dataset.name.x=3'], ['--config.dataset.name.x: no such key']),
        (['--config=smoke', '--config.seed=x'], ['--config.seed=x', "'x'"]),
        (['--config=smoke', '--config.seed=1.5'], ['--config.seed=1.5']),
        (['--config=smoke', '--seed=1'], ["Unknown command line flag 'seed'"]),
        (['--config=smoke', 'balanced'], ['balanced: unexpected argument']),
        (['--config=smoke', '--config.split.fold=12'], ['split.fold is 12', 'allows 0 to 0']),
        (['--config=smoke', '--config.optimizer.peak_lr=-1'], ['optimizer.peak_lr is -1.0', '0.0 to 10.0']),
        (['--config=smoke', '--config.model.name=vgg'], ["'vgg'; expected one of cnn, cnn_lstm, cnn_gru"]),
        (['--config=smoke', '--config.dataset.dir=/does/not/exist'], ['/does/not/exist', 'does not exist']),
    ],
)
def test_a_mistake_ends_in_one_line_that_says_what_is_allowed(arguments, messages, tmp_path):
    child = run(*arguments, cwd=tmp_path)
    assert child.returncode == 2
    assert child.stderr.startswith('error: ')
    assert child.stderr.count('\n') == 1, child.stderr
    for message in messages:
        assert message in child.stderr
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    ('variables', 'message'),
    [
        ({'JAX_PLATFORMS': 'cuda'}, 'JAX_PLATFORMS=cuda finds no device'),
        ({'JAX_PLATFORMS': 'abacus'}, 'JAX_PLATFORMS=abacus finds no device'),
        ({'JAX_ENABLE_X64': 'perhaps'}, 'JAX does not start: invalid truth value'),
    ],
)
def test_a_setting_of_jax_that_cannot_work_is_refused_in_one_line(variables, message, tmp_path):
    child = run('--config=smoke', f'--workdir={tmp_path}/run', **variables)
    lines = [line for line in child.stderr.splitlines() if not re.match(r'[WE]\d{4} ', line)]  # of JAX's C++ code
    assert (child.returncode, len(lines)) == (2, 1), child.stderr
    assert lines[0].startswith(f'error: {message}')
    assert not (tmp_path / 'run').exists()


OF_A_SHELL = {  # each changes results, unless the program sets what it needs
    'JAX_THREEFRY_PARTITIONABLE': '0',
    'JAX_DEFAULT_PRNG_IMPL': 'rbg',
    'JAX_RANDOM_SEED_OFFSET': '7',
    'JAX_ENABLE_X64': '1',
    'JAX_DEFAULT_MATMUL_PRECISION': 'bfloat16',
    'JAX_NUMPY_RANK_PROMOTION': 'raise',
}


@pytest.mark.slow
def test_settings_of_the_shell_change_no_result_and_are_recorded(labelled_folder, tmp_path):
    found = []
    for name, variables in (('usual', {}), ('other', OF_A_SHELL)):
        environment = {**child_environment(tmp_path), **variables}
        with fork_server(environment, tmp_path / 'output') as server:
            status, output = server.run(flags(labelled_folder, tmp_path / name, '--config.phases=("balanced",)'))
        assert status == 0, output
        found.append(numbers(tmp_path / name))
    for table in found[0]:
        pd.testing.assert_frame_equal(found[0][table], found[1][table], check_exact=True)
    (start,) = json.loads((tmp_path / 'other/env.json').read_text())
    assert start['variables'].items() >= OF_A_SHELL.items()


BASE = 'from bhcnet_jax.configs import base\ndef get_config():\n    c = base.get_config()\n    '


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('def get_config():\n    return undefined\n', "line 2: NameError: name 'undefined' is not defined."),
        (BASE + 'return c.nosuch', 'line 4: AttributeError: \'nosuch\'.'),
        (BASE + 'c.batch_size = "32"', 'line 4: TypeError: Could not override'),
        (BASE + 'c.phases = {"balanced"}', 'line 4: TypeError: Could not override'),
        (BASE + 'c.model = 3', 'line 4: TypeError: Could not override'),
        (BASE + 'return 5', 'get_config() returns 5; expected a ConfigDict'),
        (BASE + 'pass', 'get_config() returns None; expected a ConfigDict'),
        (BASE + 'return c.to_dict()', 'expected a ConfigDict'),
        ('x = 1', 'no function get_config in it'),
        ('def get_config(:', 'line 1: SyntaxError'),
        ('\n\nimport nosuchmodule', "line 3: ModuleNotFoundError: No module named 'nosuchmodule'."),
        ('raise SystemExit(7)', 'line 1: SystemExit: 7.'),
        (BASE + 'raise OSError(2, "nix")', 'line 4: FileNotFoundError'),
    ],
)
def test_a_config_file_that_is_none_is_one_line_with_its_place(source, message, tmp_path):
    (tmp_path / 'mine.py').write_text(source)
    child = run('--config=mine.py', '--config.seed=1', cwd=tmp_path)
    assert child.returncode == 2
    assert child.stderr.startswith('error: --config=mine.py: ')
    assert message in child.stderr
    assert child.stderr.count('\n') == 1, child.stderr


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('c.optimizer.learning_rate = 0.1', 'optimizer.learning_rate: no such key; did you mean optimizer.peak_lr?'),
        ('c.balanced.epoch = 1', 'balanced.epoch: no such key; did you mean balanced.epochs?'),
        ('c.batch_size = None', 'batch_size is None; expected 1 to 65536'),
        ('del c.optimizer', 'optimizer.peak_lr is missing'),
        ('c.extra = {1, 2}', 'extra: no such key'),
    ],
)
def test_keys_of_a_config_file_are_checked_as_those_of_the_command_line(change, message, tmp_path):
    (tmp_path / 'mine.py').write_text(f'{BASE}{change}\n    return c\n')
    child = run('--config=mine.py', cwd=tmp_path)
    assert child.returncode == 2
    assert child.stderr.startswith(f'error: {message}')
    assert child.stderr.count('\n') == 1, child.stderr


def test_a_file_with_the_name_of_a_shipped_config_is_not_executed(tmp_path):
    for name in ('smoke', 'smoke.txt'):
        (tmp_path / name).write_text('raise SystemExit("executed")')
    assert "model.name is 'vgg'" in run('--config=smoke', '--config.model.name=vgg', cwd=tmp_path).stderr
    assert '--config=smoke.txt: no such file' not in run('--config=./smoke.txt', cwd=tmp_path).stderr


@pytest.mark.parametrize('between', [['--config.seed=1'], []])
def test_of_two_tuples_the_last_counts(between, tmp_path):
    first = '--config.model.filters=(2,3)'
    flags = [first, *between, '--config.model.filters=()']
    assert 'model.filters is ()' in run('--config=smoke', *flags, cwd=tmp_path).stderr
    apart = ['--config.model.filters', '(2,3)', *between, '--config.model.filters', '()']
    assert 'model.filters is ()' in run('--config=smoke', *apart, cwd=tmp_path).stderr


def test_a_message_has_no_control_characters(tmp_path):
    child = run('--config=smoke', '--config.model.name=\x1b[31mred\x07', cwd=tmp_path)
    names = ', '.join(models.FAMILIES)
    assert child.stderr == f"error: model.name is '\\x1b[31mred\\x07'; expected one of {names}.\n"
    assert '\x1b' not in run('--config=\x1b[31mred', cwd=tmp_path).stderr


@pytest.mark.parametrize('name', ['smoke', 'configs/smoke.py'])
def test_a_config_is_found_by_name_from_any_folder(name, tmp_path):
    child = run(f'--config={name}', '--config.model.name=vgg', cwd=tmp_path)
    assert "model.name is 'vgg'" in child.stderr


def test_importing_the_entry_point_imports_neither_jax_nor_tensorflow():
    script = 'import sys, bhcnet_jax.main; print({"jax", "tensorflow", "matplotlib"} & set(sys.modules))'
    child = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.strip() == 'set()'


# A run's last words: how many programs were compiled, and how many read from the cache instead.
COUNTING = """
import atexit, collections, os
import jax
counted, server = collections.Counter(), os.getpid()
jax.monitoring.register_event_listener(lambda event, **_: counted.update([event.rpartition('/')[2]]))
atexit.register(
    lambda: os.getpid() == server or print('compiled', counted['cache_misses'], 'read', counted['cache_hits'])
)
"""


def without_cache(**variables):
    """The environment of a user who has set nothing about JAX."""
    return {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))} | variables


@pytest.fixture
def train(labelled_folder, tmp_path, tmp_path_factory):
    """Trains for one epoch in a process of its own. -> programs compiled and read, output, predictions."""
    environment = without_cache(
        XLA_FLAGS=xla_flags(devices=2), TFDS_DATA_DIR=str(tmp_path / 'tfds'), XDG_CACHE_HOME=str(tmp_path / 'cache')
    )

    def run():
        workdir = tmp_path_factory.mktemp('runs') / 'run'
        arguments = [
            '--config=smoke', f'--workdir={workdir}', '--config.phases=("balanced",)', '--config.balanced.epochs=1',
            '--config.dataset.name=folder', f'--config.dataset.dir={labelled_folder}', '--config.dataset.image_size=16',
            '--config.augment.samples=20', '--config.augment.policy=none', '--config.model.filters=(2,)',
            '--sweep=seed=0:2',
        ]  # fmt: skip
        status, output = server.run(arguments)
        assert status == 0, output
        compiled, read = map(int, re.search(r'compiled (\d+) read (\d+)\n', output).groups())
        return compiled, read, output, (workdir / 'predictions.csv').read_bytes()

    with fork_server(environment, tmp_path / 'output', COUNTING) as server:
        yield run


@pytest.mark.slow
def test_the_next_process_compiles_nothing_even_after_kept_programs_were_broken(train, tmp_path):
    compiled, read, _, expected = train()
    assert compiled > 0
    kept = tmp_path / 'cache/bhcnet_jax/compiled'
    assert kept.stat().st_mode & 0o777 == 0o700
    for file in kept.glob('*-cache'):
        os.truncate(file, file.stat().st_size // 2)  # as a kill or a full disk may leave it
    again, read, warned, predictions = train()
    assert (again, read) == (compiled, 0)
    assert 'Error reading persistent compilation cache entry' in warned
    assert predictions == expected
    again, read, warned, predictions = train()
    assert (again, read) == (0, compiled)
    assert 'Error' not in warned
    assert predictions == expected


@pytest.mark.parametrize(
    ('variables', 'folder', 'warnings'),
    [
        ({'XDG_CACHE_HOME': 'cache'}, 'cache/bhcnet_jax/compiled', 0),
        ({'HOME': '.'}, '.cache/bhcnet_jax/compiled', 0),
        ({'XDG_CACHE_HOME': 'file'}, 'None', 1),
        ({'JAX_COMPILATION_CACHE_DIR': 'mine'}, 'mine', 0),
        ({'JAX_COMPILATION_CACHE_DIR': ''}, '', 0),
    ],
)
def test_compiled_programs_are_kept_where_the_user_says(variables, folder, warnings, tmp_path):
    (tmp_path / 'file').touch()
    script = 'from bhcnet_jax import main; main._keep_compiled_programs(); import jax; ' \
        'print(jax.config.jax_compilation_cache_dir)'  # fmt: skip
    child = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True,
        env=without_cache() | variables,
    )  # fmt: skip
    assert child.stdout.strip() == folder
    assert child.stderr.count('\n') == warnings
    if warnings:
        assert 'warning: file/bhcnet_jax/compiled: Not a directory; compiled programs are not kept' in child.stderr
