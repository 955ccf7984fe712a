"""Data sets: the real head-CT images, any labelled folder, and the synthetic phantom."""


class DatasetError(ValueError):
    """What is wrong with a user's data: always one printable line that names the file or the place."""

    def __init__(self, message: str) -> None:
        # File names may hold line breaks or bytes that are not UTF-8.
        printable = message.encode('utf-8', 'backslashreplace').decode()
        super().__init__(' '.join(printable.split()))
