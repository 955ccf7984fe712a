"""The report of a study: one HTML file for readers, with the same numbers as Markdown and CSV beside it.

    python -m bhcnet_jax.report WORKDIR... [--out=report.html] [--reference=RECIPE] [--no_images] [--figures=FOLDER]
"""

import pathlib
from collections.abc import Sequence

from bhcnet_jax import files
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.records.spreadsheet import as_text
from bhcnet_jax.report import images, page
from bhcnet_jax.report.differences import most_neighbours
from bhcnet_jax.report.evidence import Evidence, find, gather
from bhcnet_jax.report.page import Figure, Page
from bhcnet_jax.report.sections.answer import answer
from bhcnet_jax.report.sections.audits import audits
from bhcnet_jax.report.sections.comparisons import comparisons
from bhcnet_jax.report.sections.curves import curves
from bhcnet_jax.report.sections.difficulty import difficulty
from bhcnet_jax.report.sections.drawn_heads import drawn_heads
from bhcnet_jax.report.sections.elsewhere import elsewhere
from bhcnet_jax.report.sections.leaderboard import leaderboard
from bhcnet_jax.report.sections.localization import localization
from bhcnet_jax.report.sections.misread import misread
from bhcnet_jax.report.sections.model_card import model_card
from bhcnet_jax.report.sections.paper_tables import paper_tables
from bhcnet_jax.report.sections.readings import readings
from bhcnet_jax.report.sections.reruns import reruns
from bhcnet_jax.report.sections.single_trainings import single_trainings
from bhcnet_jax.report.sections.sweep import sweep
from bhcnet_jax.report.sections.training import training
from bhcnet_jax.version import __version__


def _about(evidence: Evidence) -> str:
    """A line below the title."""
    counts = ', '.join(f'{count} {status}' for status, count in evidence.trials.status.value_counts().items())
    return (
        f'bhcnet_jax {__version__}. Data: {evidence.dataset}, fingerprint {evidence.fingerprint[:12]}. '
        f'Trials: {counts}, of {len(evidence.recipes)} recipes.'
    )


def make(evidence: Evidence, reference_name: str = '', with_images: bool = True) -> Page:
    """All sections in their order. UserError: no recipe of that name."""
    recipes = evidence.recipes
    reference = find(recipes, reference_name) if reference_name else most_neighbours(recipes)
    found = images.load(evidence) if with_images else '--no_images was given.'
    flags = [f'--reference={reference_name}'] * bool(reference_name) + ['--no_images'] * (not with_images)
    sections = (
        answer(evidence),
        *([paper_tables(evidence)] if evidence.is_of_paper else []),
        leaderboard(evidence),
        single_trainings(evidence),
        curves(evidence),
        *([elsewhere(evidence)] if evidence.elsewhere else []),
        training(evidence),
        comparisons(evidence, reference),
        audits(evidence, found),
        misread(evidence, found),
        *localization(evidence),
        *difficulty(evidence),
        *drawn_heads(evidence),
        sweep(evidence),
        *readings(evidence),
        reruns(evidence, flags),
        model_card(evidence),
    )
    negative, positive = evidence.classes
    title = f'{positive.capitalize()} or {negative}: what the recipes reach on {evidence.dataset}'
    return Page(title, evidence.mark, _about(evidence), sections)


def write(made: Page, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes the page and, beside it under the same name, .md and .csv; each is complete or not there."""
    paths = [out, out.with_suffix('.md'), out.with_suffix('.csv')]
    texts = (page.as_html(made), page.as_markdown(made), as_text(page.as_frame(made)).to_csv(index=False))
    for path, text in zip(paths, texts, strict=True):
        with files.output(path) as file:
            file.write(text.encode('utf-8', 'backslashreplace'))  # a command may name files that are not UTF-8
    return paths


def write_figures(made: Page, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure of the page into a folder, as NAME.svg."""
    figures = [block for section in made.sections for block in section.blocks if isinstance(block, Figure)]
    paths = [folder / f'{figure.name}.svg' for figure in figures]
    for path, figure in zip(paths, figures, strict=True):
        with files.output(path) as file:
            file.write(page.as_svg(figure).encode())
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.report',
        description=__doc__.splitlines()[0],
        epilog='Example: python -m bhcnet_jax.report runs/* --out=report.html',
    )
    parser.add_argument('workdirs', nargs='+', type=pathlib.Path, metavar='WORKDIR')
    parser.add_argument('--out', type=pathlib.Path, default='report.html', metavar='FILE.html',
                        help='default: report.html')  # fmt: skip
    parser.add_argument('--reference', default='', metavar='RECIPE', help='label or id that others are compared with')
    parser.add_argument('--no_images', action='store_true', help='leave out images that were misread')
    parser.add_argument('--figures', type=pathlib.Path, metavar='FOLDER', help='also write each figure as a file, here')
    flags = parser.parse_args(arguments)
    try:
        if flags.out.suffix != '.html':
            raise UserError(f'--out={flags.out}: expected a name that ends in .html.')
        if not flags.out.parent.is_dir():
            raise UserError(f'--out={flags.out}: no folder {flags.out.parent}; make it, or name another.')
        if flags.figures and not flags.figures.is_dir():
            raise UserError(f'--figures={flags.figures}: no such folder; make it, or name another.')
        made = make(gather(flags.workdirs), flags.reference, not flags.no_images)
        for path in (*write(made, flags.out), *(write_figures(made, flags.figures) if flags.figures else ())):
            print(f'Written: {path}')
    except UserError as error:
        fail(error)


if __name__ == '__main__':
    main()
