"""The one error class whose message is for the user."""


class UserError(ValueError):
    """Ends a command with one printable line: what was found, what was expected and what to do."""

    def __init__(self, message: str) -> None:
        # File names may hold line breaks or bytes that are not UTF-8.
        printable = message.encode('utf-8', 'backslashreplace').decode()
        line = ' '.join(printable.split())
        super().__init__(''.join(char if char.isprintable() else repr(char)[1:-1] for char in line))
