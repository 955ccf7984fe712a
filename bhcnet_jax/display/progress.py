"""How far a training or a sweep is: a few lines that renew themselves on a terminal, plain lines anywhere else.

A single trial:     13/36  balanced epoch 13  3:50 left  loss 0.6543  accuracy 0.612  100 images/s
A sweep of trials:  12/80 trials  340/1920 epochs  balanced epoch 4  3:50 left  loss ...  100 images/s  2 failed
On a terminal a sweep also shows the recipes whose finished trials score best so far.

An epoch is one trial's: a batch of 8 lanes that trains for one epoch has done 8. Those of a pre-training that trials
share count once.
"""

import collections
import heapq
import math
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BEST = 3  # recipes that are shown
_NO_RECIPE = ('seed', 'split.fold')  # swept keys that do not change the recipe


class Progress:
    """Shows trials, epochs, loss, accuracy, images per second, the time left, failures and the best recipes.

    Use as a context manager; call `update` after every epoch of a batch, and `end_trial` for every trial.
    """

    def __init__(
        self,
        total_epochs: int,
        images_per_epoch: int,
        done_epochs: int = 0,
        console: Console | None = None,
        seconds_between_lines: float = 0,
        total_trials: int = 1,
        score_name: str = 'test accuracy',
        extra_images: int = 0,
    ) -> None:
        """total_epochs: of all phases of all trials. done_epochs: those that earlier processes trained.

        images_per_epoch: training images of one trial in a usual epoch. extra_images: those of all epochs that are left
        and not usual, beyond that. console: None for standard output. seconds_between_lines: the
        least time between two lines without a terminal; the last epoch always has a line. total_trials: more than one
        make it a sweep. Call `end_trial` at the start for each trial that an earlier process ended. score_name: of the
        scores that `end_trial` gets. A caller who learns later what an earlier process did adds it to `done`.
        """
        self.total = total_epochs
        self.images_per_epoch = images_per_epoch
        self._extra_epochs = extra_images / max(images_per_epoch, 1)
        self.done = done_epochs
        self.total_trials = total_trials
        self.console = console or Console()
        self._score_name = score_name
        self._ended: collections.Counter[str] = collections.Counter()  # trials by status
        self._scores: dict[str, tuple[float, int]] = {}  # recipe -> sum, trials
        self._now = 'compiling'
        self._how: list[str] = []
        # Usual epochs of this process but for its first update, and their seconds.
        self._seconds, self._trained = 0.0, 0.0
        self._per_epoch: float | None = None  # seconds
        self._last: float | None = None  # when the last update was; None before the start
        self._seconds_between_lines = seconds_between_lines
        self._last_line = -math.inf
        self._live: Live | None = None
        if self.console.is_interactive:
            shared = sys.stderr.isatty()  # otherwise it goes to a file, and has to stay there
            self._live = Live(self, console=self.console, refresh_per_second=4, redirect_stderr=shared)

    def __enter__(self) -> 'Progress':
        self._last = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves what it shows as it stands; what is printed from now on comes below."""
        if self._live:
            self._live.stop()

    def update(
        self,
        phase: str,
        epoch: int,
        loss: float,
        accuracy: float | None,
        images_per_second: float,
        lanes: int = 1,
        images: int | None = None,
    ) -> None:
        """A batch has done one more epoch.

        epoch: 1-based, inside the phase. loss: nats; accuracy: in [0, 1], None without labels; both are means over
        lanes. images_per_second: of training, all lanes together, without compilation. lanes: trials that go on in it,
        without those that just ended. images: training images of each; None: `images_per_epoch`.
        """
        now = time.monotonic()
        usual = lanes * (images or self.images_per_epoch) / self.images_per_epoch
        self._per_epoch = self._seconds_per_epoch(now - self._last, usual, images_per_second)
        self._extra_epochs -= usual - lanes
        self._last = now
        self.done += lanes
        self._now = f'{phase} epoch {epoch}'
        told = [] if accuracy is None else [f'accuracy {accuracy:.3f}']
        self._how = [f'loss {loss:.4f}', *told, f'{images_per_second:.0f} images/s']
        due = now - self._last_line >= self._seconds_between_lines
        if due or (self.done == self.total and self.total_trials == 1):
            self._print_line()

    def _seconds_per_epoch(self, seconds: float, epochs: float, images_per_second: float) -> float:
        """Of a usual epoch. epochs: how many of these the last update stands for."""
        if self._per_epoch is not None:
            # The mean, not the median: what comes between batches (compilation, checkpoints) will come again.
            self._seconds += seconds
            self._trained += epochs
            return self._seconds / self._trained
        # The first epoch's own time may include a compilation, the reported rate does not.
        return self.images_per_epoch / images_per_second if images_per_second > 0 else seconds / epochs

    def end_trial(self, status: str, recipe: str = '', score: float | None = None, epochs_left: int = 0) -> None:
        """A trial is over, or was so before this process.

        status: DONE, FAILED, DIVERGED or PRUNED. recipe: see `label`. score: of a trial that is DONE, in [0, 1]; None
        or nan if undefined. epochs_left: of its epochs, those that nobody will train; they leave the total.
        """
        self._ended[status] += 1
        self.drop(epochs_left)
        if status == 'DONE' and score is not None and not math.isnan(score):
            sum_before, count = self._scores.get(recipe, (0.0, 0))
            self._scores[recipe] = sum_before + score, count + 1
        if self._last is not None and self.total_trials > 1 and self._ended.total() == self.total_trials:
            self._print_line()

    def drop(self, epochs: int) -> None:
        """So many epochs will not be trained; they leave the total."""
        self.total -= epochs

    def best(self) -> list[tuple[str, float, int]]:
        """Recipe, mean score and number of finished trials of the best recipes, the best first."""
        means = ((recipe, total / count, count) for recipe, (total, count) in self._scores.copy().items())
        return heapq.nlargest(BEST, means, key=lambda each: each[1])

    def _print_line(self) -> None:
        if self._live:  # renews itself
            return
        self._last_line = time.monotonic()
        line = '  '.join([*self._counts(), self._now, *self._time_left(), *self._how, *self._failures()])
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _counts(self) -> list[str]:
        if self.total_trials == 1:
            return [f'{self.done}/{self.total}']
        return [f'{self._ended.total()}/{self.total_trials} trials', f'{self.done}/{self.total} epochs']

    def _time_left(self) -> list[str]:
        if self._per_epoch is None:
            return []
        # Counts down between two updates.
        left = (self.total - self.done + self._extra_epochs) * self._per_epoch - (time.monotonic() - self._last)
        return [f'{clock(max(left, 0))} left']

    def _failures(self) -> list[str]:
        counts = [f'{self._ended[status]} {status.lower()}' for status in ('FAILED', 'DIVERGED', 'PRUNED')]
        return [count for count in counts if not count.startswith('0 ')] if self.total_trials > 1 else []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        # One cell stays free: some terminals wrap a line that fills them.
        width = options.max_width - 1
        where, how = [*self._counts(), self._now, *self._time_left()], self._how
        if self.total_trials > 1:
            where = [*self._counts(), *self._time_left()]
            how = [*self._failures(), *self._how[2:], self._now, *self._how[:2]]
        where = fit(where, width)
        cells: list[Text | ProgressBar] = [_line(where)]
        bar_width = min(width - len(where) - 2, 40)
        if bar_width >= 5:
            cells.append(ProgressBar(self.total, self.done, width=bar_width))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*cells)
        yield line
        yield _line(fit(how, width))
        if best := self.best() if self.total_trials > 1 else []:
            yield _line(fit([f'Best so far by mean {self._score_name} (in brackets: finished trials)'], width))
            yield from self._best_table(best, width)

    def _best_table(self, best: list[tuple[str, float, int]], width: int) -> Iterator[Table]:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.width = width
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify='right')
        table.add_column(ratio=1, overflow='fold')  # a label's end may be all that tells it from the next
        for recipe, mean, count in best:
            table.add_row(f'  {100 * mean:.1f} %', f'({count})', Text(recipe))
        yield table


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow='crop')


def label(swept: Mapping[str, Any]) -> str:
    """A recipe's name in a sweep: its swept values without seed and fold, 'model.dropout=0.5 batch_size=8'."""
    return ' '.join(f'{key}={value}' for key, value in swept.items() if key not in _NO_RECIPE) or 'the recipe'


def fit(parts: list[str], width: int) -> str:
    """As many of the first parts as fit into a line, the first one always."""
    line = ''.join(parts[:1])
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f'  {part}'
    return line


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 4:10, 1:04:10."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def counted(number: int, noun: str) -> str:
    """As in '1 epoch' and '2 epochs'."""
    return f'{number} {noun}' + ('' if number == 1 else 's')
