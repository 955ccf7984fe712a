"""Packs a trained network, or an ensemble, into one file that needs no run directory.

    python -m bhcnet_jax.bundle RUN_DIR --out=model.bhc [--trials='seed=0 fold=3']
        [--operating_point=youden|sensitivity>=0.95] [--error_level=0.1] [--phase=phantom] [--evaluation=FILE]

`bhcnet_jax.load('model.bhc')` and `python -m bhcnet_jax.predict model.bhc` take it; see inference/bundles.py. Where the
training images still are, it also learns what they look like, so that predictions mark images unlike them.

--phase=phantom packs the networks as they were before they saw a real image, one for each seed. --evaluation adds what
`python -m bhcnet_jax.evaluate` found of these weights (its evaluation.json); it can be given several times.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import bundles, calibration, evaluation, outliers, trained
from bhcnet_jax.inference.model import Model
from bhcnet_jax.records import recipes
from bhcnet_jax.records.merge import Merged


def _with_outliers(model: Model, chosen: Merged) -> tuple[Model, dict[str, Any], str]:
    """The model with outliers, how they do, and a line for the user; or without, and why."""
    try:
        image_set = trained.images(chosen)
    except UserError as error:
        missing = 'the training images were not there'
        return model, {'missing': missing}, f'Images unlike the training images will not be marked: {error}'
    if len(image_set.images) < outliers.MIN_IMAGES:
        missing = f'it needs {outliers.MIN_IMAGES} training images, there were {len(image_set.images)}'
        return model, {'missing': missing}, f'Images unlike the training images will not be marked: {missing}.'
    group_of = recipes.read_groups(chosen.trials.file).get(image_set.fingerprint, {})
    groups = recipes.number_groups(image_set.ids, group_of)
    fitted, evidence = outliers.fit(np.asarray(image_set.images), image_set.labels, groups)
    said = f'Of {evidence["images"]} training images, held out, {evidence["flagged"]} are unlike the others.'
    return dataclasses.replace(model, outliers=fitted), {'evidence': evidence}, said


def _pack(flags: argparse.Namespace) -> tuple[Model, list[str]]:
    """Writes the bundle. -> what is in it, and lines for the user."""
    lines: list[str] = []
    if flags.phase:
        chosen, evidence = None, None
        model = trained.read_pretrained(flags.run_dir, flags.trials)
    else:
        chosen = trained.select(flags.run_dir, flags.trials)
        data = calibration.out_of_fold(chosen)
        made = calibration.fit(data, flags.operating_point, flags.error_level)
        model = dataclasses.replace(trained.read(flags.run_dir, chosen), calibration=made)
        lines += [] if made else [f'Not calibrated: {calibration.lacking(data)}.']
        model, evidence, said = _with_outliers(model, chosen)
        lines.append(said)
    measured = tuple(evaluation.measured(model, path) for path in flags.evaluation)
    model = dataclasses.replace(model, measured=measured)
    bundles.write(model, chosen, flags.out, evidence)
    return model, [*lines, *(f'Measured elsewhere: {each}.' for each in measured)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.bundle',
        description='Packs a trained network, or an ensemble, into one file.',
        epilog='Example: python -m bhcnet_jax.bundle runs/balanced-head_ct --out=model.bhc',
    )
    parser.add_argument('run_dir', type=pathlib.Path, metavar='RUN_DIR')
    parser.add_argument('--out', required=True, type=pathlib.Path, metavar='FILE', help='the bundle, model.bhc')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    parser.add_argument(
        '--operating_point', default=calibration.OPERATING_POINTS[0], choices=calibration.OPERATING_POINTS,
        help='how the threshold is chosen: the largest sensitivity + specificity, or that sensitivity',
    )  # fmt: skip
    parser.add_argument(
        '--error_level', default=calibration.ERROR_LEVEL, type=_share, metavar='SHARE',
        help=f'in how many images a true class may be held for impossible; default: {calibration.ERROR_LEVEL}',
    )  # fmt: skip
    parser.add_argument('--phase', choices=('phantom',), help='pack the networks as they were after it')
    parser.add_argument(
        '--evaluation', default=[], action='append', type=pathlib.Path, metavar='FILE',
        help='an evaluation.json of these weights',
    )  # fmt: skip
    flags = parser.parse_args(arguments)
    try:
        model, lines = _pack(flags)
    except UserError as error:
        fail(error)
    print('\n'.join(lines), end='\n' if lines else '')
    networks = f'{len(model.members)} networks' if len(model.members) > 1 else 'one network'
    size = flags.out.stat().st_size
    print(f'{networks} of {model.name}, trained on {model.trained_on}, in {flags.out} ({size} bytes)')


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(text)
    return value


if __name__ == '__main__':
    main()
