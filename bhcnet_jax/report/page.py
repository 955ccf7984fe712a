"""What a report is made of, and how it becomes HTML, Markdown and CSV: all three from the same numbers."""

import dataclasses
import html
import math
import re
from collections.abc import Iterable, Sequence

import jinja2
import pandas as pd
from markupsafe import Markup

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
    def text(self) -> str:
        """The value alone; '-' where it is undefined."""
        return self.printed or _text(self.value, self.style, unit=True)

    @property
    def detail(self) -> str:
        """Interval and n, '' where there are neither."""
        has_interval = not (math.isnan(self.low) or math.isnan(self.high))
        ends = (_text(self.low, self.style), _text(self.high, self.style))
        interval = ' to '.join(ends) if has_interval else ''
        of = '' if self.n is None else counted(self.n, self.noun) if self.noun else f'n = {self.n}'
        return '; '.join(part for part in (interval, of) if part)

    def __str__(self) -> str:
        return f'{self.text} ({self.detail})' if self.detail else self.text


def counted(number: int, noun: str) -> str:
    """As in '1 seed' and '2 seeds'."""
    return f'{number} {noun}' + ('' if number == 1 else 's')


Cell = str | Number


_STYLES = {  # factor, format, unit
    'percent': (100, '.1f', ' %'),
    'points': (100, '+.1f', ' points'),
    'plain': (1, '.3f', ''),
    'signed': (1, '+.3f', ''),
    'whole': (1, '.0f', ''),
    'p': (1, '.3f', ''),
}


def _text(value: float, style: str, unit: bool = False) -> str:
    if math.isnan(value):
        return '-'
    if style == 'p' and value < 0.001:
        return 'below 0.001'
    factor, digits, sign = _STYLES[style]
    return f'{factor * value:{digits}}{sign if unit else ""}'.replace('-', '\N{MINUS SIGN}')


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. name: what report.csv calls it. The first cell of a row is the row's name."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ''
    kind: str = 'table'


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


Block = str | Table | Figure | Gallery | Code  # str: a paragraph


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
    environment.filters['prose'] = _prose
    return environment


def _prose(paragraph: str) -> Markup:
    """A paragraph with `commands` in it."""
    parts = html.escape(paragraph).split('`')
    return Markup(''.join(f'<code>{part}</code>' if place % 2 else part for place, part in enumerate(parts)))


def _markdown_cell(cell: Cell) -> str:
    return html.escape(str(cell), quote=False).replace('|', '\\|').replace('\n', ' ')


def as_html(page: Page) -> str:
    """One file that loads nothing else."""
    return _environment().get_template('page.html.j2').render(page=page)


def as_markdown(page: Page) -> str:
    """The same without figures and images, which it names."""
    return _environment().get_template('page.md.j2').render(page=page)


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
                        yield (page.mark, section.title, table.name, name, head, *found)
