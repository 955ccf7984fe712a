"""How far a training is: a bar on a terminal, one plain line per epoch anywhere else."""

import math
import statistics
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class Progress:
    """Shows phase, epoch, loss, accuracy, images per second and the time left.

    Use as a context manager and call `update` after every epoch.
    """

    def __init__(
        self,
        total_epochs: int,
        images_per_epoch: int,
        done_epochs: int = 0,
        console: Console | None = None,
        seconds_between_lines: float = 0,
    ) -> None:
        """total_epochs: of all phases together. done_epochs: of those, by earlier processes (a resumed run).

        images_per_epoch: training images. console: standard output unless given. seconds_between_lines: without a
        terminal, epochs that end sooner after the last line are not printed, but for the last one. A caller who learns
        only later what an earlier process has done adds it to `done`.
        """
        self.total = total_epochs
        self.images_per_epoch = images_per_epoch
        self.done = done_epochs
        self.console = console or Console()
        self._now = 'first epoch'
        self._how: list[str] = []
        self._seconds: list[float] = []  # of each epoch of this process; an earlier one may have been faster
        self._forecast = 0.0  # seconds left at the last update
        self._seconds_between_lines = seconds_between_lines
        self._last_line = -math.inf
        self._live: Live | None = None
        if self.console.is_interactive:
            shared = sys.stderr.isatty()  # otherwise it goes to a file, and has to stay there
            self._live = Live(self, console=self.console, refresh_per_second=1, redirect_stderr=shared)

    def __enter__(self) -> 'Progress':
        self._last = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, phase: str, epoch: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """One more epoch is done.

        epoch: 1-based, inside the phase. loss: nats. accuracy: in [0, 1]. images_per_second: of training,
        without compilation.
        """
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        self.done += 1
        self._forecast = self._seconds_left(images_per_second)
        self._now = f'{phase} epoch {epoch}'
        self._how = [f'loss {loss:.4f}', f'accuracy {accuracy:.3f}', f'{images_per_second:.0f} images/s']
        if self._live:
            self._live.refresh()
        elif now - self._last_line >= self._seconds_between_lines or self.done == self.total:
            self._last_line = now
            line = '  '.join(self._where() + self._how)
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _seconds_left(self, images_per_second: float) -> float:
        # The first epoch's own time has the compilation in it, the reported rate has not. The median keeps
        # one slow epoch (a phase's own compilation, a busy disk) from spoiling the forecast.
        after_first = self._seconds[1:]
        if after_first:
            per_epoch = statistics.median(after_first)
        elif images_per_second > 0:
            per_epoch = self.images_per_epoch / images_per_second
        else:
            per_epoch = self._seconds[0]
        return (self.total - self.done) * per_epoch

    def _where(self) -> list[str]:
        where = [f'{self.done}/{self.total}', self._now]
        if self._seconds:  # counts down between two updates
            where.append(f'{clock(max(self._forecast - (time.monotonic() - self._last), 0))} left')
        return where

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        # One cell stays free: some terminals wrap a line that fills them.
        width = options.max_width - 1
        where = fit(self._where(), width)
        cells: list[Text | ProgressBar] = [Text(where, no_wrap=True, overflow='crop')]
        bar_width = min(width - len(where) - 2, 40)
        if bar_width >= 5:
            cells.append(ProgressBar(self.total, self.done, width=bar_width))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*cells)
        yield line
        yield Text(fit(self._how, width), no_wrap=True, overflow='crop')


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
