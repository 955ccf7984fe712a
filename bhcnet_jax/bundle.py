"""Packs a trained network, or an ensemble, into one file that needs no run directory.

    python -m bhcnet_jax.bundle RUN_DIR --out=model.bhc [--trials='seed=0 fold=3']
        [--operating_point=youden|sensitivity>=0.95] [--error_level=0.1]

`bhcnet_jax.load('model.bhc')` and `python -m bhcnet_jax.predict model.bhc` take it; see inference/bundles.py. Where the
training images still are, it also learns what they look like, so that predictions mark images unlike them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import bundles, calibration, outliers, trained
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
    flags = parser.parse_args(arguments)
    try:
        chosen = trained.select(flags.run_dir, flags.trials)
        data = calibration.out_of_fold(chosen)
        made = calibration.fit(data, flags.operating_point, flags.error_level)
        model = dataclasses.replace(trained.read(flags.run_dir, chosen), calibration=made)
        model, evidence, said = _with_outliers(model, chosen)
        bundles.write(model, chosen, flags.out, evidence)
    except UserError as error:
        fail(error)
    if made is None:
        print(f'Not calibrated: {calibration.lacking(data)}.')
    print(said)
    networks = f'{len(model.members)} networks' if len(model.members) > 1 else 'one network'
    print(f'{networks} of {model.name}, trained on {model.dataset}, in {flags.out} ({flags.out.stat().st_size} bytes)')


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(text)
    return value


if __name__ == '__main__':
    main()
