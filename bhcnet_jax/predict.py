"""Applies a trained network, or an ensemble, to images.

    python -m bhcnet_jax.predict MODEL FILES_OR_FOLDERS_OR_ZIPS... --out=DIR [--trials='seed=0 fold=3']

MODEL is a run directory or a bundle. DIR gets predictions.csv and predictions.json. A broken file is told in one line
on standard error, and the others go on; the exit status is then 1.
"""

import contextlib
import csv
import io
import json
import math
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from bhcnet_jax import files, load
from bhcnet_jax.errors import Parser, UserError
from bhcnet_jax.inference import scoring
from bhcnet_jax.inference.model import Model
from bhcnet_jax.inference.scoring import Prediction

COLUMNS = ('file', 'probability', 'spread', 'in_training_set', 'trained_on')
# A cell that begins so is a formula to a spreadsheet: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ('=', '+', '-', '@', '\t', '\r')

Add = Callable[[Prediction], None]


def predict(model: Model, paths: Sequence[pathlib.Path], out: pathlib.Path) -> tuple[int, int]:
    """Writes predictions.csv and .json into `out` and broken files to standard error; -> how many there are of each.

    UserError: a path does not exist, there is no image in them, or `out` cannot be written.
    """
    inputs, broken = scoring.find(paths)
    if not inputs and not broken:
        raise UserError(f'no images in {", ".join(map(str, paths))}. Formats that are read: see docs/use.md.')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}. Name another folder.') from error
    for error in broken:
        print(error, file=sys.stderr)
    predicted, unread = 0, len(broken)
    with (
        _write_csv(out / 'predictions.csv', model) as add_to_csv,
        _write_json(out / 'predictions.json', model) as add_to_json,
        _progress() as progress,
    ):
        for each in progress.track(scoring.score(model, inputs), total=len(inputs)):
            if isinstance(each, UserError):
                unread += 1
                progress.console.print(str(each), markup=False, highlight=False, soft_wrap=True)
            else:
                predicted += 1
                add_to_csv(each)
                add_to_json(each)
    return predicted, unread


def _progress() -> Progress:
    """A bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def _write_csv(path: pathlib.Path, model: Model) -> Iterator[Add]:
    """A row for each prediction. What is unknown is empty."""
    with files.output(path) as file:
        text = io.TextIOWrapper(file, 'utf-8', errors='backslashreplace', newline='')
        rows = csv.writer(text, lineterminator='\n')
        rows.writerow(COLUMNS)

        def add(each: Prediction) -> None:
            spread = None if math.isnan(each.spread) else each.spread
            rows.writerow([_cell(each.file), each.probability, spread, each.in_training_set, _cell(model.dataset)])

        yield add
        text.detach()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


@contextlib.contextmanager
def _write_json(path: pathlib.Path, model: Model) -> Iterator[Add]:
    """The model, then the predictions, each on a line. What is unknown is null."""
    head = {
        'recipe': model.name,
        'trials': [each.trial_id for each in model.members],
        'trained_on': model.dataset,
        'data_fingerprint': model.fingerprint,
        'positive_class': model.class_names[1],
    }
    with files.output(path) as file:
        file.write(json.dumps(head, indent=2).removesuffix('\n}').encode() + b',\n  "predictions": [')
        separator = '\n    '

        def add(each: Prediction) -> None:
            nonlocal separator
            spread = None if math.isnan(each.spread) else each.spread
            file.write((separator + json.dumps({**each._asdict(), 'spread': spread})).encode())
            separator = ',\n    '

        yield add
        file.write(b'\n  ]\n}\n')


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.predict', description='Applies a trained network, or an ensemble, to images.'
    )
    parser.add_argument('model', metavar='MODEL', help='a run directory or a bundle')
    parser.add_argument('paths', nargs='+', type=pathlib.Path, metavar='IMAGES', help='files, folders, zips')
    parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR', help='for predictions.csv and .json')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'")
    flags = parser.parse_args(arguments)
    try:
        model = load(flags.model, flags.trials)
        predicted, unread = predict(model, flags.paths, flags.out)
    except UserError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        print('\nInterrupted; nothing was written.', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    networks = f'{len(model.members)} networks' if len(model.members) > 1 else 'one network'
    print(
        f'{predicted} images by {networks} of {model.name}, trained on {model.dataset}'
        f'{f"; {unread} could not be read" if unread else ""}. Written to {flags.out}. For research only.'
    )
    sys.exit(1 if unread else 0)


if __name__ == '__main__':
    main()
