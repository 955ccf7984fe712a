"""What is for the user: the one error class, and mistakes in a command line."""

import argparse
from typing import NoReturn


class UserError(ValueError):
    """Ends a command with one printable line: what was found, what was expected and what to do."""

    def __init__(self, message: str) -> None:
        # File names may hold line breaks or bytes that are not UTF-8.
        printable = message.encode('utf-8', 'backslashreplace').decode()
        line = ' '.join(printable.split())
        super().__init__(''.join(char if char.isprintable() else repr(char)[1:-1] for char in line))


class Parser(argparse.ArgumentParser):
    """Answers a mistake in a command line with the usage and one printable line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        super().error(str(UserError(message)))
