"""What a command does before it imports its libraries, which takes seconds: platform, interrupts, standard output."""

import atexit
import io
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType

from bhcnet_jax.errors import fail

ON_WINDOWS = 'bhcnet_jax runs on Linux and macOS; on Windows through WSL2.'


def is_command(argv: Sequence[str]) -> bool:
    """Whether the process was started as one. argv: sys.argv while the package itself is imported."""
    return bool(argv) and (argv[0] == '-m' or pathlib.Path(argv[0]).stem == 'bhcnet-jax')


def prepare() -> None:
    """Readies the process; ends it on Windows, which lacks what the package needs."""
    if sys.platform == 'win32':
        fail(ON_WINDOWS)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a background job of a script ignores it
        signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = _show
    if sys.stdout is None:  # closed by who started the process
        os.open(os.devnull, os.O_WRONLY)  # so that no file gets its number
    else:
        sys.stdout = _checked(sys.stdout)
        atexit.register(_flush)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ends the process at once while it imports, for libraries swallow what is raised there; else KeyboardInterrupt."""
    while frame:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            try:
                os.write(2, b'Interrupted.\n')
            finally:  # even if nobody reads it
                os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    while trace and trace.tb_next:
        trace = trace.tb_next
    if kind is ValueError and trace and trace.tb_frame.f_globals.get('__name__') == 'jax._src.config':
        fail(f'JAX does not start: {error} Unset that JAX_ variable, or correct it.')
    elif issubclass(kind, KeyboardInterrupt):
        print('Interrupted.', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, error.__traceback__)


class _Output(io.FileIO):
    """Standard output; when it cannot be written any more, the process ends with one line."""

    _lost = False

    def write(self, data: bytes) -> int:
        """Writes; SystemExit if that fails, and what comes after that is dropped."""
        if self._lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._lost = True
            if not isinstance(error, BrokenPipeError):  # a reader that has seen enough, such as `head`
                print(f'error: standard output cannot be written: {error.strerror}.', file=sys.stderr)
            sys.exit(1)


def _flush() -> None:
    """Writes what is left while the exit status can still tell that it fails."""
    try:
        sys.stdout.flush()
    except SystemExit as error:
        os._exit(error.code)


def _checked(stream: io.TextIOBase) -> io.TextIOWrapper:
    """The same stream, which looks for errors; names of files that are not UTF-8 can be printed."""
    raw = _Output(stream.fileno(), 'w', closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, 'backslashreplace', line_buffering=stream.line_buffering
    )
