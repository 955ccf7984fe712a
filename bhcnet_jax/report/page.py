"""What a report is made of, and how it becomes HTML, Markdown and CSV: all three from the same numbers."""

import dataclasses
import functools
import html
import math
import re
from collections.abc import Iterable, Sequence

import jinja2
import pandas as pd
from markupsafe import Markup

from bhcnet_jax.display.progress import counted

NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class Number:
    """A number with its interval and what it is of.

    Attributes:
      value, low, high: in the metric's unit; low and high nan where there is no interval.
      n: images that it is of; None where that has no meaning.
      style: 'percent' of a share in [0, 1], 'points' for a difference of two shares, 'plain', 'signed', 'p', 'whole'.
      printed: how somebody else prints the value; '' for our own way.
      noun: what n counts, in the singular, where that is not images.
    """

    value: float
    low: float = NAN
    high: float = NAN
    n: int | None = None
    style: str = 'percent'
    printed: str = ''
    noun: str = ''

    @property
    def bare(self) -> str:
        """The value without its unit; '-' where it is undefined."""
        return self.printed or _text(self.value, self.style)

    @property
    def unit(self) -> str:
        """'%', 'points' or ''."""
        return _STYLES[self.style][2]

    @property
    def text(self) -> str:
        """The value with its unit."""
        return f'{self.bare} {self.unit}' if self.unit and self.bare != '-' else self.bare

    @property
    def interval(self) -> str:
        """Its ends, '' where there is none."""
        if math.isnan(self.low) or math.isnan(self.high):
            return ''
        return f'{_text(self.low, self.style)} to {_text(self.high, self.style)}'

    @property
    def of(self) -> str:
        """What it is of, '' where that has no meaning."""
        return '' if self.n is None else counted(self.n, self.noun) if self.noun else f'n = {self.n}'

    def __str__(self) -> str:
        return _joined(self.text, [each for each in (self.interval, self.of) if each])


def span(counts: Iterable[int]) -> str:
    """The least and the largest, as one where they agree."""
    lowest, *_, highest = sorted([*counts] * 2)
    return str(lowest) if lowest == highest else f'{lowest} to {highest}'


def _joined(text: str, details: Sequence[str]) -> str:
    return f'{text} ({"; ".join(details)})' if details else text


Cell = str | Number


_STYLES = {  # factor, format, unit
    'percent': (100, '.1f', '%'),
    'points': (100, '+.1f', 'points'),
    'plain': (1, '.3f', ''),
    'signed': (1, '+.3f', ''),
    'whole': (1, '.0f', ''),
    'p': (1, '.3f', ''),
}


def _text(value: float, style: str) -> str:
    if math.isnan(value):
        return '-'
    if style == 'p' and value < 0.001:
        return '< 0.001'
    factor, digits, _ = _STYLES[style]
    return f'{factor * value:{digits}}'.replace('-', '\N{MINUS SIGN}')


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table. What all its numbers share, unit and n, stands once in its head."""

    name: str
    cells: Sequence[Cell]

    @functools.cached_property
    def numbers(self) -> list[Number]:
        return [cell for cell in self.cells if isinstance(cell, Number)]

    @functools.cached_property
    def is_numeric(self) -> bool:
        """Whether it is set flush right."""
        return 2 * len(self.numbers) > len(self.cells)

    @functools.cached_property
    def unit(self) -> str:
        return self._shared('unit')

    @functools.cached_property
    def of(self) -> str:
        return self._shared('of')

    def _shared(self, name: str) -> str:
        values = {getattr(each, name) for each in self.numbers}
        return values.pop() if len(values) == 1 else ''

    @property
    def head(self) -> str:
        """Its name with the unit of all its numbers."""
        return f'{self.name},\N{NO-BREAK SPACE}{self.unit}' if self.unit else self.name

    def text(self, cell: Cell) -> str:
        """A cell's value, without the unit that the head has."""
        return cell if isinstance(cell, str) else cell.bare if self.unit else cell.text

    def details(self, cell: Cell) -> list[str]:
        """A cell's interval, and what it is of where that is not in the head."""
        return [] if isinstance(cell, str) else [each for each in (cell.interval, '' if self.of else cell.of) if each]

    def padding(self, cell: Cell) -> str:
        """Spaces as wide as a point and digits, so that points stand below each other in a column set flush right."""
        missing = self._decimals - _decimals(self.text(cell)) if isinstance(cell, Number) and self.is_numeric else 0
        full = missing == self._decimals
        return '\N{PUNCTUATION SPACE}' * (full and missing > 0) + '\N{FIGURE SPACE}' * missing

    @functools.cached_property
    def _decimals(self) -> int:
        return max((_decimals(self.text(each)) for each in self.numbers), default=0)


def _decimals(text: str) -> int:
    return len(re.search(r'(?:\.(\d+))?\D*$', text)[1] or '')


LONG = 10  # rows; a longer table is folded


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is the row's name.

    Attributes:
      name: what report.csv calls it.
      remarks: of each row, below it; '' for none. () where no row has one.
      longest: rows with which it is not folded yet.
      is_of_images: whether it says anything of the images, so that it bears the page's mark.
    """

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ''
    remarks: Sequence[str] = ()
    longest: int = LONG
    is_of_images: bool = True
    kind: str = 'table'

    @functools.cached_property
    def columns(self) -> list[Column]:
        return [Column(head, [row[place] for row in self.rows]) for place, head in enumerate(self.heads)]

    @property
    def is_folded(self) -> bool:
        return len(self.rows) > self.longest

    def remark(self, place: int) -> str:
        """That of a row."""
        return self.remarks[place] if self.remarks else ''


@dataclasses.dataclass(frozen=True)
class Figure:
    """An inline SVG. name: its id in the page."""

    name: str
    caption: str
    svg: str
    kind: str = 'figure'


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Small images. pictures: (data URI, caption) each."""

    caption: str
    pictures: Sequence[tuple[str, str]]
    kind: str = 'gallery'


@dataclasses.dataclass(frozen=True)
class Code:
    """Commands to copy."""

    text: str
    kind: str = 'code'


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph in small print."""

    text: str
    kind: str = 'note'


Block = str | Table | Figure | Gallery | Code | Note  # str: a paragraph


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole report. mark: 'PHANTOM: synthetic images', or '' for real ones. about: a line on data and code."""

    title: str
    mark: str
    about: str
    sections: Sequence[Section]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('bhcnet_jax.report', '.'),
        autoescape=jinja2.select_autoescape(('html.j2',)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters['svg'] = Markup  # drawn here, and its texts are escaped by matplotlib
    environment.filters['cell'] = _markdown_cell
    environment.filters['row'] = _markdown_row
    environment.filters['prose'] = _prose
    return environment


def _prose(paragraph: str) -> Markup:
    """A paragraph with `commands` in it. No line breaks inside 'n = 20', '95 %' and 'p < 0.05'."""
    together = re.sub(r' (?=%)|(?<=[=<]) (?=\d)|(?<=\bn) (?== )', '\N{NO-BREAK SPACE}', paragraph)
    parts = html.escape(together).split('`')
    return Markup(''.join(f'<code>{part}</code>' if place % 2 else part for place, part in enumerate(parts)))


def _markdown_cell(text: str) -> str:
    return html.escape(text, quote=False).replace('|', '\\|').replace('\n', ' ')


def _markdown_row(row: Sequence[Cell], columns: Sequence[Column]) -> list[str]:
    return [_joined(column.text(cell), column.details(cell)) for column, cell in zip(columns, row, strict=True)]


def as_html(page: Page) -> str:
    """One file that loads nothing else."""
    return _environment().get_template('page.html.j2').render(page=page)


def as_markdown(page: Page) -> str:
    """The same without figures and images, which it names."""
    text = _environment().get_template('page.md.j2').render(page=page)
    return re.sub('<(?=[A-Za-z/!?])', '&lt;', text)  # names are data: none of them begins a tag of HTML


def as_svg(figure: Figure) -> str:
    """A figure as a file of its own, in the page's colours: light, or dark where the reader has it so."""
    palette = _environment().get_template('palette.css.j2').render()
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure.svg).groups()
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="background: var(--paper)"'
    style = f'<style>{palette}</style>'
    return re.sub(r'^<svg (.*?aria-label="[^"]*">)', rf'<svg {size} \1{style}', figure.svg, count=1)


def as_frame(page: Page) -> pd.DataFrame:
    """Every number of every table, a row each: mark, section, table, row, column, value, low, high, n."""
    columns = ('mark', 'section', 'table', 'row', 'column', 'value', 'low', 'high', 'n')
    return pd.DataFrame(_numbers(page), columns=columns)


def _numbers(page: Page) -> Iterable[tuple[object, ...]]:
    for section in page.sections:
        for table in (block for block in section.blocks if isinstance(block, Table)):
            for row in table.rows:
                for head, cell in zip(table.heads, row, strict=True):
                    if isinstance(cell, Number):
                        name = str(row[0])
                        found = (cell.value, cell.low, cell.high, cell.n)
                        mark = page.mark if table.is_of_images else ''
                        yield (mark, section.title, table.name, name, head, *found)
