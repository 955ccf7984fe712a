"""What every command does from its first moment: interrupts, standard output, platforms, --help."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import bhcnet_jax
from runs import child_environment, flags

# Starts Python with SIGINT heeded, as in a terminal; what started the tests may have handed down that it is ignored.
PYTHON = [sys.executable, '-c', 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); '
          'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])']  # fmt: skip
COMMANDS = ('main', 'baselines', 'results', 'report', 'audit', 'predict', 'evaluate', 'explain', 'difficulty', 'bundle',
            'export')
OF_A_CONFIG = ('main', 'baselines')
CHECKS = ('paper.audit', 'datasets.phantom.shortcuts')  # they take no flags


def start(*arguments, stdout=subprocess.PIPE, **options):
    return subprocess.Popen(
        [*PYTHON, '-m', *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.fixture
def slow_library(tmp_path):
    """A folder with a numpy that says that it is being imported, then waits for longer than a test does.

    It sleeps in short pieces: a signal that comes just before a sleep is heeded after it.
    """
    (tmp_path / 'numpy').mkdir()
    (tmp_path / 'numpy/__init__.py').write_text(
        'import pathlib, time\npathlib.Path("here").touch()\n'
        'def wait():\n    for _ in range(600):\n        time.sleep(0.1)\n'
        'try:\n    wait()\nexcept BaseException:\n    wait()\n'  # as libraries do that swallow it
    )
    return tmp_path


def start_an_import(command, folder):
    """Starts a command and waits until it imports numpy from a folder. -> the process"""
    more = ['--config=smoke'] if command in OF_A_CONFIG else ['.']
    child = start(f'bhcnet_jax.{command}', *more, cwd=folder, env={**os.environ, 'PYTHONPATH': str(folder)})
    while not (folder / 'here').exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    return child


@pytest.mark.parametrize('command', COMMANDS)
def test_an_interrupt_while_a_library_is_imported_is_one_line(command, slow_library):
    with start_an_import(command, slow_library) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130
        assert child.stderr.read() == 'Interrupted.\n'


def test_an_interrupt_ends_an_import_whose_standard_error_nobody_reads(slow_library):
    with start_an_import('report', slow_library) as child:
        child.stderr.close()
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 130


def test_an_interrupt_later_is_one_line_too(tmp_path):
    script = 'import os, signal, sys; sys.argv = ["-m"]; import bhcnet_jax; os.kill(os.getpid(), signal.SIGINT)'
    child = subprocess.run([*PYTHON, '-c', script], capture_output=True, text=True, check=False)
    assert child.stderr == 'Interrupted.\n'
    assert child.returncode == -signal.SIGINT


def test_importing_the_package_leaves_the_process_alone():
    script = (
        'import signal, sys; before = sys.stdout; import bhcnet_jax.main; '
        'print(sys.stdout is before, signal.getsignal(signal.SIGINT) is signal.default_int_handler)'
    )
    child = subprocess.run([*PYTHON, '-c', script], capture_output=True, text=True, check=True)
    assert child.stdout == 'True True\n'


def test_a_full_standard_output_is_called_so():
    with pathlib.Path('/dev/full').open('w') as full, start('bhcnet_jax.paper.audit', stdout=full) as child:
        assert child.wait(timeout=60) == 1
        assert child.stderr.read() == 'error: standard output cannot be written: No space left on device.\n'


def test_a_reader_that_has_seen_enough_gets_no_message():
    read, write = os.pipe()
    os.close(read)
    with start('bhcnet_jax.paper.audit', stdout=write) as child:
        os.close(write)
        assert child.wait(timeout=60) == 1
        assert child.stderr.read() == ''


def test_a_closed_standard_output_is_no_error():
    script = f'exec {sys.executable} -m bhcnet_jax.paper.audit >&-'
    child = subprocess.run(['sh', '-c', script], stderr=subprocess.PIPE, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, '')


def test_windows_is_refused_with_a_way_out():
    script = 'import sys; sys.platform = "win32"; sys.argv = ["-m"]; import bhcnet_jax'
    child = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert child.returncode == 2
    assert child.stderr == 'error: bhcnet_jax runs on Linux and macOS; on Windows through WSL2.\n'


@pytest.mark.parametrize('command', COMMANDS)
def test_help_has_an_example_and_the_defaults_and_exits_with_0(command):
    child = subprocess.run([sys.executable, '-m', f'bhcnet_jax.{command}', '--help'], capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert (child.returncode, child.stderr) == (0, '')
    assert f'python -m bhcnet_jax.{command} ' in child.stdout.split('xample', 1)[-1]
    assert 'default' in child.stdout
    if command in OF_A_CONFIG:
        assert 'smoke: Every part of a run' in child.stdout and '--sweep' in child.stdout
        assert 'base.py' in child.stdout
        assert ('--prune' in child.stdout) == (command == 'main')
        assert 'runs/baselines-<data set>' in child.stdout


@pytest.mark.parametrize('command', ['baselines', 'report'])
@pytest.mark.parametrize(
    'shell', [(), ('sh', '-c', 'trap "" INT; exec "$@"', 'sh')], ids=['in front', 'in the background']
)
def test_a_setting_that_jax_does_not_take_is_one_line(command, shell):
    environment = {**os.environ, 'JAX_ENABLE_X64': 'maybe'}
    child = subprocess.run([*shell, sys.executable, '-m', f'bhcnet_jax.{command}', 'x'], env=environment,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert child.returncode == 2 and child.stderr.count('\n') == 1
    assert child.stderr.startswith('error: ') and "'JAX_ENABLE_X64'" in child.stderr


def test_an_unknown_flag_is_repeated_without_its_control_characters():
    child = subprocess.run([sys.executable, '-m', 'bhcnet_jax.results', 'x', '--\x1b[31mred'], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert child.returncode == 2 and '--\\x1b[31mred' in child.stderr and '\x1b' not in child.stderr


@pytest.mark.parametrize('command', [*COMMANDS, *CHECKS])
@pytest.mark.slow
def test_an_unknown_flag_is_one_line_and_exit_status_2(command):
    more = ['--config=smoke'] if command in OF_A_CONFIG else []
    child = subprocess.run([sys.executable, '-m', f'bhcnet_jax.{command}', *more, '--nix'], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert (child.returncode, child.stdout) == (2, '')
    assert child.stderr.startswith('error: ') and child.stderr.count('\n') == 1


@pytest.mark.parametrize('command', CHECKS)
def test_help_of_a_check_says_what_it_is_and_runs_nothing(command):
    child = subprocess.run([sys.executable, '-m', f'bhcnet_jax.{command}', '--help'], capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert (child.returncode, child.stderr) == (0, '')
    assert child.stdout.startswith(f'usage: python -m bhcnet_jax.{command} [-h]\n')
    assert child.stdout.count('\n') < 12


def test_the_console_script_shows_its_flags():
    script = 'import sys; sys.argv = ["/bin/bhcnet-jax", "--help"]; from bhcnet_jax.main import run; run()'
    child = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert child.returncode == 0
    assert '--prune' in child.stdout and '--workdir' in child.stdout and 'python -m bhcnet_jax.main' in child.stdout


def test_the_package_says_what_there_is():
    child = subprocess.run([sys.executable, '-m', 'bhcnet_jax'], capture_output=True, text=True, check=True)
    root = pathlib.Path(bhcnet_jax.__file__).parent
    found = {path.stem for path in root.glob('*.py') if "__name__ == '__main__'" in path.read_text()}
    found |= {path.parent.name for path in root.glob('*/__main__.py')}
    assert found - {'__main__'} == set(COMMANDS)
    for command in COMMANDS:
        assert f'  python -m bhcnet_jax.{command} ' in child.stdout


LATER = (
    'array_record', 'grain', 'matplotlib', 'orbax', 'pandas', 'pyarrow', 'sklearn', 'statsmodels', 'tensorboardX',
    'tensorflow_datasets',
)  # fmt: skip


@pytest.mark.slow
def test_a_set_that_was_opened_before_is_described_without_the_libraries_that_come_later(labelled_folder, tmp_path):
    arguments = flags(labelled_folder, tmp_path / 'run', '--dry_run', '--noestimate')
    script = (
        'import sys; from bhcnet_jax import main; from bhcnet_jax.display import summary\n'
        'describe = summary.describe\n'
        'def listed(*arguments):\n'
        '    describe(*arguments)\n'
        '    print("loaded", *{name.partition(".")[0] for name in sys.modules})\n'
        'summary.describe = listed\n'
        f'sys.argv = ["main", *{arguments!r}]; main.run()'
    )
    environment = child_environment(tmp_path)
    loaded = []
    for _ in ('prepares and keeps', 'reads what was kept'):
        child = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True,
                               check=True)  # fmt: skip
        (line,) = [line for line in child.stdout.splitlines() if line.startswith('loaded ')]
        loaded.append(set(line.split()))
    assert {'jax', 'array_record', 'grain', 'tensorflow_datasets'} <= loaded[0]
    assert 'jax' in loaded[1]
    assert not loaded[1].intersection(LATER)
