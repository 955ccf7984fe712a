import os
import subprocess
import sys

import pytest


def run(*flags, cwd=None):
    """Runs the program in a real process; flags that are wrong are answered before JAX is imported."""
    return subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.main', *flags], capture_output=True, text=True, timeout=60, cwd=cwd,
        env={**os.environ, 'XLA_FLAGS': ''}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('flags', 'messages'),
    [
        ([], ['--config is missing', 'imbalanced']),
        (['--config=nix'], ['--config=nix: no such file', 'imbalanced, lstm_balanced']),
        (['--config', 'missing/file.py'], ['--config=missing/file.py: no such file']),
        (['--config=smoke', '--config.balanced.epoch=3'], ['--config.balanced.epoch: no such key', '"epochs"']),
        (['--config=smoke', '--config.nix.epochs=3'], ['--config.nix.epochs: no such key']),
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
def test_a_mistake_ends_in_one_line_that_says_what_is_allowed(flags, messages, tmp_path):
    child = run(*flags, cwd=tmp_path)
    assert child.returncode == 2
    assert child.stderr.startswith('error: ')
    assert child.stderr.count('\n') == 1, child.stderr
    for message in messages:
        assert message in child.stderr
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_a_config_file_with_a_mistake_in_it_is_named(tmp_path):
    (tmp_path / 'mine.py').write_text('def get_config():\n    return undefined\n')
    child = run('--config=mine.py', cwd=tmp_path)
    assert child.returncode != 0
    assert 'mine.py' in child.stderr
    assert "name 'undefined' is not defined" in child.stderr


@pytest.mark.parametrize('name', ['smoke', 'configs/smoke.py'])
def test_a_config_is_found_by_name_from_any_folder(name, tmp_path):
    child = run(f'--config={name}', '--config.model.name=vgg', cwd=tmp_path)
    assert "model.name is 'vgg'" in child.stderr


def test_importing_the_entry_point_imports_neither_jax_nor_tensorflow():
    script = 'import sys, bhcnet_jax.main; print({"jax", "tensorflow", "matplotlib"} & set(sys.modules))'
    child = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.strip() == 'set()'
