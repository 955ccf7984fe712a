"""The report of a study: one HTML file for readers, with the same numbers as Markdown and CSV beside it.

    python -m bhcnet_jax.report WORKDIR... [--out=report.html] [--reference=RECIPE] [--no_images] [--figures=FOLDER]
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from bhcnet_jax.report import context, differences, findings, leaderboard, page, pictures, shapes
from bhcnet_jax.report.evidence import Evidence, find, gather
from bhcnet_jax.report.page import Figure, Page
from bhcnet_jax.results import ResultsError


def make(evidence: Evidence, reference_name: str = '', with_images: bool = True) -> Page:
    """All sections in their order. ResultsError: no recipe of that name."""
    recipes = evidence.recipes
    reference = find(recipes, reference_name) if reference_name else differences.most_neighbours(recipes)
    images = pictures.load(evidence) if with_images else '--no_images was given.'
    sections = (
        findings.answer(evidence),
        findings.paper_tables(evidence),
        findings.leaderboard(evidence),
        shapes.curves(evidence),
        shapes.training(evidence),
        differences.comparisons(evidence, reference),
        context.audits(evidence, images),
        pictures.gallery(evidence, images),
        shapes.sweep(evidence),
        context.reruns(evidence),
        context.model_card(evidence),
    )
    title = f'Hemorrhage or not: what the recipes reach on {evidence.dataset}'
    return Page(title, evidence.mark, context.about(evidence), sections)


def write(made: Page, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes the page and, beside it under the same name, .md and .csv; each is complete or not there."""
    paths = [out, out.with_suffix('.md'), out.with_suffix('.csv')]
    texts = (page.as_html(made), page.as_markdown(made), page.as_frame(made).to_csv(index=False))
    for path, text in zip(paths, texts, strict=True):
        leaderboard.export(path, functools.partial(_write_text, text))
    return paths


def write_figures(made: Page, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure of the page into a folder, as NAME.svg."""
    figures = [block for section in made.sections for block in section.blocks if isinstance(block, Figure)]
    paths = [folder / f'{figure.name}.svg' for figure in figures]
    for path, figure in zip(paths, figures, strict=True):
        leaderboard.export(path, functools.partial(_write_text, page.as_svg(figure)))
    return paths


def _write_text(text: str, path: pathlib.Path) -> None:
    path.write_text(text, encoding='utf-8')


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = argparse.ArgumentParser(prog='python -m bhcnet_jax.report', description=__doc__.splitlines()[0])
    parser.add_argument('workdirs', nargs='+', type=pathlib.Path, metavar='WORKDIR')
    parser.add_argument('--out', type=pathlib.Path, default='report.html', metavar='FILE.html')
    parser.add_argument('--reference', default='', metavar='RECIPE', help='label or id that others are compared with')
    parser.add_argument('--no_images', action='store_true', help='leave out images that were misread')
    parser.add_argument('--figures', type=pathlib.Path, metavar='FOLDER', help='also write each figure as a file, here')
    flags = parser.parse_args(arguments)
    try:
        if flags.out.suffix != '.html':
            raise ResultsError(f'--out={flags.out}: expected a name that ends in .html.')
        if not flags.out.parent.is_dir():
            raise ResultsError(f'--out={flags.out}: no folder {flags.out.parent}; make it, or name another.')
        if flags.figures and not flags.figures.is_dir():
            raise ResultsError(f'--figures={flags.figures}: no such folder; make it, or name another.')
        made = make(gather(flags.workdirs), flags.reference, not flags.no_images)
        for path in (*write(made, flags.out), *(write_figures(made, flags.figures) if flags.figures else ())):
            print(f'Written: {path}')
    except ResultsError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
