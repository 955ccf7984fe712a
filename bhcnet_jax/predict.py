"""Applies a trained network, or an ensemble, to images.

    python -m bhcnet_jax.predict [MODEL] FILES_OR_FOLDERS_OR_ZIPS... --out=DIR [--trials='seed=0'] [--window=40/80]

MODEL is a run directory, a bundle, or `phantom`, the model of the package, whose networks have seen drawn heads alone.
If the first argument is none of these, it is taken for images, and that model answers, which a line says. DIR gets
predictions.csv, series.csv, predictions.json, and predictions.html, a page with heat maps. A broken file is told in one
line on standard error, and the others go on; the exit status is then 1. A file that holds no CT slice is told in the
same way and does not count as broken.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import math
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bhcnet_jax import files, load
from bhcnet_jax.datasets.ct.hounsfield import BRAIN, Skipped, Window, parse_window
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import bundles, scoring
from bhcnet_jax.inference.gallery import Gallery
from bhcnet_jax.inference.model import Model
from bhcnet_jax.inference.scoring import Prediction, Series
from bhcnet_jax.records import merge
from bhcnet_jax.records.spreadsheet import quoted

Add = Callable[[Prediction], None]


class Counts(NamedTuple):
    """Images and slices that were predicted, and files that could not be read and that hold no CT slice."""

    predicted: int
    unread: int
    skipped: int


def predict(model: Model, paths: Sequence[pathlib.Path], out: pathlib.Path, window: Window = BRAIN) -> Counts:
    """Writes predictions.csv, .json and .html and series.csv into `out`, and what was not read to standard error.

    window: of CT slices. UserError: a path does not exist, nothing in them is read, or `out` cannot be written.
    """
    inputs, left_out = scoring.find(paths)
    if not inputs and not left_out:
        raise UserError(f'no images in {", ".join(map(str, paths))}. Formats that are read: see docs/use.md.')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}. Name another folder.') from error
    for error in left_out:
        print(error, file=sys.stderr)
    counts = collections.Counter(type(each) for each in left_out)
    series = scoring.SeriesResults()
    with (
        _write_csv(out / 'predictions.csv', model) as add_to_csv,
        _write_json(out / 'predictions.json', model, series) as add_to_json,
        _progress() as progress,
    ):
        gallery, total = Gallery(model), sum(each.slices for each in inputs)
        scored = scoring.score(model, inputs, window)
        for each in progress.track(scored, total=total, description='predictions'):
            if isinstance(each, UserError):
                counts[type(each)] += 1
                progress.console.print(str(each), markup=False, highlight=False, soft_wrap=True)
                continue
            prediction, image = each
            series.add(prediction)
            add_to_csv(prediction)
            add_to_json(prediction)
            gallery.add(prediction, image)
        gallery.write(out / 'predictions.html', progress.track)
    _write_series(out / 'series.csv', model, series.all())
    return Counts(gallery.count, counts[UserError], counts[Skipped])


def _progress() -> Progress:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def _write_csv(path: pathlib.Path, model: Model) -> Iterator[Add]:
    """A row for each prediction."""
    with _csv(path, Prediction._fields, model) as write:
        yield write


def _write_series(path: pathlib.Path, model: Model, series: Sequence[Series]) -> None:
    """A row for each series."""
    with _csv(path, Series._fields, model) as write:
        for each in series:
            write(each)


@contextlib.contextmanager
def _csv(path: pathlib.Path, columns: Sequence[str], model: Model) -> Iterator[Callable[[NamedTuple], None]]:
    """Writes named tuples as rows, and what the model was trained on and found to do. What is unknown is empty."""
    with files.output(path) as file:
        text = io.TextIOWrapper(file, 'utf-8', errors='backslashreplace', newline='')
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow((*columns, 'trained_on', 'measured'))
        about = model.trained_on, model.measured_text
        yield lambda each: rows.writerow([quoted(value) for value in (*_known(each).values(), *about)])
        text.detach()


def _known(each: NamedTuple) -> dict[str, Any]:
    """Its fields, None for nan."""
    fields = each._asdict().items()
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields}


@contextlib.contextmanager
def _write_json(path: pathlib.Path, model: Model, series: scoring.SeriesResults) -> Iterator[Add]:
    """The model, the predictions, each on a line, and last the series. What is unknown is null."""
    head = {
        'recipe': model.name,
        'trials': [each.trial_id for each in model.members],
        'trained_on': model.trained_on,
        'measured': [each._asdict() for each in model.measured],
        'data_fingerprint': model.fingerprint,
        'positive_class': model.class_names[1],
        'calibration': model.calibration and dataclasses.asdict(model.calibration),
        'knows_unlike_images': model.outliers is not None,
    }
    with files.output(path) as file:
        file.write(json.dumps(head, indent=2).removesuffix('\n}').encode() + b',\n  "predictions": [')
        separator = '\n    '

        def add(each: Prediction) -> None:
            nonlocal separator
            file.write((separator + json.dumps(_known(each))).encode())
            separator = ',\n    '

        yield add
        rows = ','.join(f'\n    {json.dumps(_known(each))}' for each in series.all())
        file.write(f'\n  ],\n  "series": [{rows}\n  ]\n}}\n'.encode())


def split(words: Sequence[str]) -> tuple[str, list[pathlib.Path]]:
    """The arguments as a model, '' for none, and images. UserError: no images, or the first is not there."""
    path = pathlib.Path(words[0])
    is_model = words[0] == 'phantom' or merge.is_run_directory(path) or bundles.is_bundle(path)
    if is_model and len(words) == 1:
        raise UserError(f'{words[0]} is a model; expected images after it: files, folders or zips.')
    if not is_model and not path.exists():
        raise UserError(f'{words[0]}: no such run directory or bundle, file or folder.')
    return (words[0] if is_model else ''), [pathlib.Path(word) for word in words[is_model:]]


def about(model: Model) -> str:
    """A model in a few words, with what was found on images from elsewhere."""
    return f'trained on {model.trained_on}, {model.measured_text or "not measured on real images"}'


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.predict',
        description='Applies a trained network, or an ensemble, to images.',
        epilog='Example: python -m bhcnet_jax.predict runs/smoke-PHANTOM images --out=predictions',
    )
    parser.add_argument(
        'paths', nargs='+', metavar='[MODEL] IMAGES',
        help='a run directory, a bundle or phantom, which is the default; then files, folders, zips',
    )  # fmt: skip
    parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR', help='for all that is written')
    parser.add_argument('--window', default='40/80', metavar='LEVEL/WIDTH', help='of CT slices in HU; default 40/80')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    flags = parser.parse_intermixed_args(arguments)  # images may follow options
    try:
        window = parse_window(flags.window)
        name, paths = split(flags.paths)
        model = load(name or 'phantom', flags.trials)
        if not name:
            print(f'{flags.paths[0]} is no model, so that of the package answers: {about(model)}.')
        counts = predict(model, paths, flags.out, window)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print('\nInterrupted; nothing was written.', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    networks = f'{len(model.members)} networks' if len(model.members) > 1 else 'one network'
    print(
        f'{counts.predicted} images by {networks} of {model.name}, trained on {model.trained_on}'
        f'{f"; {counts.unread} could not be read" if counts.unread else ""}'
        f'{f"; {counts.skipped} skipped" if counts.skipped else ""}. Written to {flags.out}. For research only.'
    )
    if name and model.measured:
        print(f'Measured elsewhere: {model.measured_text}.')
    sys.exit(1 if counts.unread or not counts.predicted else 0)


if __name__ == '__main__':
    main()
