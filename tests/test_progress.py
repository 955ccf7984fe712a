import io
import math
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from bhcnet_jax.report.progress import Progress, clock, fit


def plain(width=80):
    return Console(file=io.StringIO(), width=width)


def seconds_left(line):
    minutes, seconds = map(int, re.search(r'(\d+):(\d\d) left', line).groups())
    return 60 * minutes + seconds


def test_a_log_gets_one_plain_line_per_epoch():
    console = plain()
    with Progress(36, 1000, console=console) as progress:
        progress.update('balanced', 1, 0.6543, 0.612, 100.0)
        progress.update('balanced', 2, 0.5, 1.0, 104.4)
    first, second = console.file.getvalue().splitlines()
    assert first == '1/36  balanced epoch 1  5:50 left  loss 0.6543  accuracy 0.612  100 images/s'
    assert second.startswith('2/36  balanced epoch 2  ')
    assert second.endswith('  loss 0.5000  accuracy 1.000  104 images/s')


def test_a_line_of_a_log_is_there_at_once_and_not_folded(tmp_path):
    path = tmp_path / 'log'
    with path.open('w') as file, Progress(36, 1000, console=Console(file=file, width=20)) as progress:
        progress.update('balanced', 1, 0.6543, 0.612, 100.0)
        assert len(path.read_text().splitlines()) == 1


def test_after_a_resume_the_count_goes_on_and_the_rate_is_of_this_process():
    console = plain()
    with Progress(40, 1000, done_epochs=30, console=console) as progress:
        progress.update('imbalanced', 7, 0.6543, 0.612, 50.0)
    line = console.file.getvalue()
    assert line.startswith('31/40  imbalanced epoch 7')
    assert seconds_left(line) == 9 * 1000 / 50


def test_time_left_comes_from_the_clock_and_ignores_the_epoch_that_compiles():
    console = plain()
    with Progress(1004, 1000, done_epochs=1, console=console) as progress:
        time.sleep(0.4)  # compiling
        for epoch in range(3):
            time.sleep(0.05)
            progress.update('balanced', epoch, 0.6, 0.6, 1e9)
    assert 50 <= seconds_left(console.file.getvalue().splitlines()[-1]) < 200


@pytest.mark.parametrize('rate', [0.0, math.nan])
def test_an_unknown_rate_falls_back_to_the_clock(rate):
    console = plain()
    with Progress(1001, 1000, console=console) as progress:
        time.sleep(0.05)
        progress.update('balanced', 1, 0.6, 0.6, rate)
    assert 50 <= seconds_left(console.file.getvalue()) < 200


def test_the_last_epoch_leaves_no_time():
    console = plain()
    with Progress(1, 1000, console=console) as progress:
        progress.update('balanced', 1, 0.6, 0.6, 10.0)
    assert '0:00 left' in console.file.getvalue()


def test_a_diverged_loss_is_shown():
    console = plain()
    with Progress(1, 1000, console=console) as progress:
        progress.update('balanced', 1, math.nan, 0.5, 10.0)
    assert 'loss nan' in console.file.getvalue()


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (59.6, '1:00'), (250, '4:10'), (3850, '1:04:10')])
def test_the_clock_reads_as_hours_minutes_seconds(seconds, text):
    assert clock(seconds) == text


def test_a_line_keeps_its_first_parts_and_never_breaks_one():
    assert fit(['abc', 'de', 'f'], 11) == 'abc  de  f'
    assert fit(['abc', 'de', 'f'], 9) == 'abc  de'
    assert fit(['abc', 'de', 'f'], 1) == 'abc'


SCRIPT = """
import time
from bhcnet_jax.report.progress import Progress
with Progress(36, 1000) as progress:
    progress.done += 12
    progress.update('balanced', 13, 0.6543, 0.612, 100.0)
    time.sleep(1.3)
    progress.update('balanced', 14, 0.6543, 0.612, 100.0)
    print('a line of the log')
    raise KeyboardInterrupt
"""


def on_a_terminal(width):
    """What SCRIPT writes to a real pseudo-terminal of that width."""
    parent, child = pty.openpty()
    environment = os.environ | {'TERM': 'xterm-256color', 'COLUMNS': str(width), 'PYTHONPATH': os.getcwd()}
    with subprocess.Popen(
        [sys.executable, '-c', SCRIPT], stdout=child, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(child)
        text = b''
        while select.select([parent], [], [], 10)[0]:
            try:
                text += os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
    os.close(parent)
    assert process.returncode != 0
    return text.decode()


def screen_lines(text):
    """Without control sequences; a redrawn line counts again."""
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)
    return [line for line in re.split(r'[\r\n]+', text) if line.strip()]


@pytest.mark.parametrize('width', [80, 24])
def test_a_terminal_shows_a_bar_that_fits_and_gets_its_cursor_back(width):
    text = on_a_terminal(width)
    lines = screen_lines(text)
    assert max(map(len, lines)) <= width
    assert text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')
    assert any(line.startswith('a line of the log') for line in lines)
    assert any(line.startswith('loss 0.6543') for line in lines)
    first = [line for line in lines if line.startswith('13/36')]
    assert width < 80 or ('3:50 left' in first[0] and '3:49 left' in first[-1]), 'counts down'
    last = [line for line in lines if line.startswith('14/36')][-1]
    assert ('━' in last and 'balanced epoch 14' in last and 'left' in last) == (width == 80)


def test_lines_may_be_kept_apart_but_the_last_epoch_is_always_told():
    console = Console(file=io.StringIO(), width=100)
    with Progress(50, 1000, console=console, seconds_between_lines=60) as progress:
        for epoch in range(1, 51):
            progress.update('balanced', epoch, 0.5, 0.5, 100.0)
    lines = console.file.getvalue().splitlines()
    assert [line.split('/')[0] for line in lines] == ['1', '50']
