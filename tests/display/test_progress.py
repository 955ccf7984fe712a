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

from bhcnet_jax.display.progress import Progress, clock, fit, label


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


def test_an_epoch_of_eight_times_the_images_counts_eight_times_in_the_time_left():
    console = plain()
    with Progress(4, 1000, console=console, extra_images=2 * 7000) as progress:
        progress.update('phantom', 1, 0.6543, 0.612, 100.0, images=8000)
    line = console.file.getvalue()
    assert line.startswith('1/4  phantom epoch 1')
    assert seconds_left(line) == (8000 + 2 * 1000) / 100


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
from bhcnet_jax.display.progress import Progress
with Progress(36, 1000) as progress:
    progress.done += 12
    progress.update('balanced', 13, 0.6543, 0.612, 100.0)
    time.sleep(1.3)
    progress.update('balanced', 14, 0.6543, 0.612, 100.0)
    print('a line of the log')
    raise KeyboardInterrupt
"""


def on_a_terminal(width, script):
    """Exit status of a script, and what it writes to a real pseudo-terminal of that width."""
    parent, child = pty.openpty()
    environment = os.environ | {'TERM': 'xterm-256color', 'COLUMNS': str(width), 'PYTHONPATH': os.getcwd()}
    with subprocess.Popen(
        [sys.executable, '-c', script], stdout=child, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(child)
        text = b''
        while select.select([parent], [], [], 10)[0]:
            try:
                text += os.read(parent, 65536)
            except OSError:  # the other end is closed
                break
    os.close(parent)
    return process.returncode, text.decode()


def screen_lines(text):
    """Without control sequences; a redrawn line counts again."""
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)
    return [line for line in re.split(r'[\r\n]+', text) if line.strip()]


@pytest.mark.parametrize('width', [80, 24])
def test_a_terminal_shows_a_bar_that_fits_and_gets_its_cursor_back(width):
    status, text = on_a_terminal(width, SCRIPT)
    assert status != 0
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


def sweep(console, **more):
    return Progress(80, 1000, console=console, **{'total_trials': 8, 'seconds_between_lines': 0, **more})


def test_a_log_of_a_sweep_has_trials_epochs_of_all_lanes_and_failures():
    console = plain()
    with sweep(console) as progress:
        progress.update('balanced', 1, 0.5, 0.7, 400.0, lanes=4)
        progress.end_trial('DIVERGED', epochs_left=9)
        progress.update('balanced', 2, 0.4, 0.8, 400.0, lanes=3)
        progress.end_trial('FAILED', epochs_left=8)
        progress.end_trial('DONE', score=0.5)
        progress.update('balanced', 3, 0.4, 0.8, 400.0, lanes=2)
    first, second, third = console.file.getvalue().splitlines()
    assert first == '0/8 trials  4/80 epochs  balanced epoch 1  3:10 left  loss 0.5000  accuracy 0.700  400 images/s'
    assert second.startswith('1/8 trials  7/71 epochs  balanced epoch 2  ') and second.endswith('  1 diverged')
    assert third.startswith('3/8 trials  9/63 epochs  balanced epoch 3  ')
    assert third.endswith('  400 images/s  1 failed  1 diverged')


def test_time_left_counts_lanes_and_all_that_comes_between_epochs_but_not_what_ended_early():
    console = plain(200)
    with Progress(4000, 1000, console=console, total_trials=8) as progress:
        time.sleep(0.3)  # compiling
        progress.update('balanced', 1, 0.5, 0.5, 1e9, lanes=8)
        for epoch in (2, 3, 4):
            time.sleep(0.08)
            progress.update('balanced', epoch, 0.5, 0.5, 1e9, lanes=8)
        time.sleep(0.24)  # compiling for other trials
        progress.update('balanced', 1, 0.5, 0.5, 1e9, lanes=8)
        before = seconds_left(console.file.getvalue().splitlines()[-1])
        progress.end_trial('FAILED', epochs_left=1980)
        progress.update('balanced', 2, 0.5, 0.5, 1e9, lanes=8)
    after = seconds_left(console.file.getvalue().splitlines()[-1])
    # 0.48 s for 32 epochs, of which 3960 are left; then for 40 epochs, and 1972 are left.
    assert 59 <= before < 80
    assert 23 <= after < 32


def test_a_resumed_sweep_counts_what_earlier_processes_ended_and_ranks_it():
    console = plain(120)
    progress = sweep(console, done_epochs=20)
    progress.end_trial('DONE', 'batch_size=8', 0.9)
    progress.end_trial('DONE', 'batch_size=4', 0.6)
    progress.end_trial('DIVERGED', 'batch_size=4', epochs_left=10)
    with progress:
        progress.update('balanced', 1, 0.5, 0.5, 1000.0, lanes=2)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith('3/8 trials  22/70 epochs  ') and line.endswith('  1 diverged')
    assert seconds_left(line) == 48
    assert progress.best() == [('batch_size=8', 0.9, 1), ('batch_size=4', 0.6, 1)]


def test_the_best_recipes_are_those_of_the_highest_mean_over_finished_trials():
    progress = sweep(plain())
    scores = {'a': [0.9, 0.5], 'b': [0.8, 0.8], 'c': [0.2], 'd': [0.75], 'e': [0.1]}
    for recipe, values in scores.items():
        for score in values:
            progress.end_trial('DONE', recipe, score)
    progress.end_trial('PRUNED', 'e', 1.0)  # not trained to the end: no score to compare
    progress.end_trial('DONE', 'e', math.nan)
    assert progress.best() == [('b', 0.8, 2), ('d', 0.75, 1), ('a', 0.7, 2)]


def test_a_slow_log_of_a_sweep_tells_the_end_once():
    console = plain(200)
    with sweep(console, seconds_between_lines=60) as progress:
        for batch in range(2):
            for epoch in range(1, 11):
                progress.update('balanced', epoch, 0.5, 0.5, 100.0, lanes=4)
            for _ in range(4):
                progress.end_trial('PRUNED' if batch else 'DONE', score=0.5)
    lines = console.file.getvalue().splitlines()
    assert [line.split('  ')[:2] for line in lines] == [['0/8 trials', '4/80 epochs'], ['8/8 trials', '80/80 epochs']]
    assert lines[-1].endswith('0:00 left  loss 0.5000  accuracy 0.500  100 images/s  4 pruned')


def test_a_recipe_is_called_by_what_is_swept_but_for_seed_and_fold():
    assert label({'seed': 3, 'optimizer.peak_lr': 0.001, 'split.fold': 1, 'model.filters': (2, 3)}) == (
        'optimizer.peak_lr=0.001 model.filters=(2, 3)'
    )
    assert label({'seed': 3}) == 'the recipe'


SWEEP = """
import time
from bhcnet_jax.display.progress import Progress
with Progress(1920, 1000, total_trials=80, score_name='validation accuracy') as progress:
    for epoch in range(1, 4):
        time.sleep(0.1)
        progress.update('balanced', epoch, 0.6543, 0.612, 100.0, lanes=8)
    for rate in (0.1, 0.01, 0.001, 0.0001):
        name = f'optimizer.peak_lr={rate} model.dropout=0.5 augment.affine.zoom=0.125 augment.affine.rotation=12.5'
        progress.end_trial('DONE', name, 0.5 + rate)
    progress.end_trial('FAILED', name, epochs_left=21)
    progress.end_trial('DIVERGED', name, epochs_left=21)
"""


@pytest.mark.parametrize('width', [140, 80, 40])
def test_a_terminal_shows_the_sweep_the_failures_and_the_best_recipes(width):
    status, text = on_a_terminal(width, SWEEP)
    assert status == 0
    lines = [line.rstrip() for line in screen_lines(text)]
    assert max(map(len, lines)) <= width
    shown = lines[max(place for place, line in enumerate(lines) if line.startswith('6/80 trials')) :]
    assert shown[0].startswith('6/80 trials  24/1878 epochs')
    assert 'left' in shown[0] and ('━' in shown[0]) == (width >= 80)
    assert shown[1].startswith('1 failed  1 diverged  100 images/s')
    assert ('balanced epoch 3  loss 0.6543' in shown[1]) == (width >= 80)
    assert shown[2] == 'Best so far by mean validation accuracy (in brackets: finished trials)'[: width - 1].rstrip()
    table = ''.join(''.join(shown[3:]).split())  # labels are folded where they are too long
    assert [row.split()[0] for row in shown[3:] if '%' in row] == ['60.0', '51.0', '50.1']
    assert table.count('(1)') == 3 and table.count('augment.affine.rotation=12.5') == 3
    assert width < 140 or len(shown) == 6
