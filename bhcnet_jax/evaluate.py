"""How a trained network, or an ensemble, does on labelled images from elsewhere.

    python -m bhcnet_jax.evaluate MODEL --data=DIR [--out=DIR] [--trials='seed=0 fold=3'] [--errors=FILE.html]
        [--columns=FILE,LABEL,GROUP] [--positive=CLASS] [--leave_out_training_images]

MODEL is a run directory, a bundle, or `phantom`, the model of the package. Written are evaluation.json, which the
report of a run directory shows if it lies in a folder of it, and images.csv.
"""

import base64
import io
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.table import Table

from bhcnet_jax import files, load
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import evaluation
from bhcnet_jax.records import evaluations
from bhcnet_jax.report import page
from bhcnet_jax.report.page import Gallery, Page, Section

MOST = 60  # images of each kind on the page of errors
SHOWN = ('auc', 'sensitivity', 'specificity')  # in the terminal; the others are in evaluation.json
PRIVATE = 'This page shows images of the set. It is for finding out why, and not for publication.'


def write_errors(rows: pd.DataFrame, image_set: ImageSet, name: str, path: pathlib.Path) -> None:
    """A page with the worst errors. rows: of `evaluation.score`. UserError: it cannot be written."""
    place = {image_id: number for number, image_id in enumerate(image_set.ids)}
    sections = []
    for title, errors in evaluation.worst(rows, MOST):
        pictures = [_picture(image_set.images[place[each.id]], each) for each in errors.itertuples()]
        shown = f'The {len(pictures)} most certain. p: probability; then why the model abstains, if it does.'
        sections.append(Section(title, [PRIVATE, Gallery(shown, pictures)] if pictures else [PRIVATE]))
    mark = 'PHANTOM: synthetic images' if image_set.synthetic else ''
    made = Page(f'Worst errors of {name} on {image_set.label}: not for publication', mark, PRIVATE, sections)
    with files.output(path) as file:
        file.write(page.as_html(made).encode())


def _picture(image: np.ndarray, row: Any) -> tuple[str, str]:
    written = io.BytesIO()
    Image.fromarray(image).save(written, 'PNG', optimize=True)
    address = f'data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}'
    return address, f'{row.id}, p = {row.used:.2f}{f", {row.abstained}" if row.abstained else ""}'


def report(found: dict[str, Any], looks: int, console: Console) -> None:
    """Prints the numbers of an evaluation."""
    table = Table('of', 'n', 'positive', *SHOWN, title=f'{found["model"]["name"]} on {found["data"]["dataset"]}')
    for row in (*found['results'], *found['subgroups']):
        cells = [_text(row['metrics'].get(name)) for name in SHOWN]
        table.add_row(row['of'], str(row['n']), str(row['positives']), *cells)
    console.print(table)
    told = ', '.join(f'{count} {why}' for why, count in found['abstained'].items()) or 'none'
    console.print(f'Abstained: {told}. These images were looked at {looks} times, as counted there.', markup=False)


def _text(metric: dict[str, float | None] | None) -> str:
    if metric is None or metric['value'] is None:
        return '-'
    ends = '' if metric['low'] is None else f' ({metric["low"]:.2f} to {metric["high"]:.2f})'
    return f'{metric["value"]:.2f}{ends}'


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.evaluate',
        description=__doc__.splitlines()[0],
        epilog='Example: python -m bhcnet_jax.evaluate model.bhc --data=ward --errors=errors.html',
    )
    parser.add_argument('model', metavar='MODEL', help='a run directory, a bundle or phantom')
    parser.add_argument('--data', required=True, type=pathlib.Path, metavar='DIR', help='labelled images')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR', help='default: on-DATA in the run or here')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    parser.add_argument('--columns', default='', help='of the csv, as config.dataset.columns')
    parser.add_argument('--positive', default='', help='the positive class, as config.dataset.positive')
    parser.add_argument('--leave_out_training_images', action='store_true', help='in place of refusing them')
    parser.add_argument('--errors', type=pathlib.Path, metavar='FILE.html', help='a page of the worst errors')
    flags = parser.parse_args(arguments)
    path = pathlib.Path(flags.model)
    out = flags.out or (path if path.is_dir() else pathlib.Path()) / f'on-{flags.data.resolve().stem}'
    try:
        model = load(flags.model, flags.trials)
        image_set = evaluation.read_images(model, flags.data, flags.columns, flags.positive)
        new = evaluation.new_images(model, image_set, flags.leave_out_training_images)
        rows = evaluation.score(model, image_set, new)
        found = evaluation.evaluate(model, image_set, rows)
        words = sys.argv[1:] if arguments is None else arguments
        looks = evaluations.write(found, rows, out, shlex.join(['python', '-m', 'bhcnet_jax.evaluate', *words]))
        if flags.errors:
            write_errors(rows, image_set, model.name, flags.errors)
    except UserError as error:
        fail(error)
    report(found, looks, Console())
    print(f'Written to {out}. For research only.')


if __name__ == '__main__':
    main()
