"""Texts of a csv file that no spreadsheet takes for a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ('=', '+', '-', '@', '\t', '\r')  # how one begins; OWASP, CSV Injection


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy in which a text that begins like a formula has an apostrophe before it; numbers stay as they are."""
    texts = frame.select_dtypes(['object', 'string'])
    safe = {name: texts[name].map(quoted, na_action='ignore') for name in texts}
    return frame.assign(**safe)


def quoted(value: object) -> object:
    """A cell's value; a text that begins like a formula has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
