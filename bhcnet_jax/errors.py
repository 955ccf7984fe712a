"""What is for the user: the one error class, and how a command ends with it."""

import argparse
import sys
from typing import NoReturn


class UserError(ValueError):
    """Ends a command with one printable line: what was found, what was expected and what to do."""

    def __init__(self, message: str) -> None:
        # File names may hold line breaks or bytes that are not UTF-8.
        printable = message.encode('utf-8', 'backslashreplace').decode()
        line = ' '.join(printable.split())
        super().__init__(''.join(char if char.isprintable() else repr(char)[1:-1] for char in line))


def fail(message: object) -> NoReturn:
    """Ends the process with a mistake of the user: one line on standard error, exit status 2 as argparse has it."""
    print(f'error: {UserError(str(message))}', file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Answers a mistake in a command line as all others; --help has the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        fail(f'{message}; --help shows what there is.')
