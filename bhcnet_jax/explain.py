"""Measures whether a network's heat maps point at bleedings, on drawn slices where their place is known.

    python -m bhcnet_jax.explain MODEL [--how=occlusion] [--out=DIR] [--trials='seed=0 fold=3']

MODEL is a run directory, a bundle, or `phantom`, the model of the package. The maps are scored beside a centre prior
and beside the same networks with random weights. A run directory gets localization_HOW.json, which the report shows.
Heat maps of images: `predict`.
"""

import math
import pathlib
from collections.abc import Sequence

from bhcnet_jax import load
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import localization, saliency
from bhcnet_jax.inference.localization import Judged
from bhcnet_jax.statistics.bootstrap import Estimate


def _lines(judged: Judged) -> list[str]:
    """What the command prints."""
    networks = f'{len(judged.trials)} networks' if len(judged.trials) > 1 else 'one network'
    left_out = f'; {judged.left_out} more have one smaller than a pixel' if judged.left_out else ''
    names = list(localization.MEASURES)
    rows = [
        f'{whose:21}' + ''.join(map(_cell, found.values())).rstrip()
        for whose, found in judged.scores.items()
    ]
    return [
        f'PHANTOM: n = {judged.slices} drawn slices with a bleeding{left_out}. {judged.recipe}, {networks} trained on '
        f'{judged.trained_on}, calls {100 * judged.called:.1f} % of them positive.',
        '',
        f'{judged.how:21}' + ''.join(f'{name:>9}{"":17}' for name in names).rstrip(),
        *rows,
        '',
        *localization.verdict(judged),
        'Intervals: 95 %, bootstrap over slices.',
    ]


def _cell(found: Estimate) -> str:
    """A measure with its interval, 26 characters; without one where all draws agree, as at 0."""
    interval = '' if math.isnan(found.low) else f'({found.low:.3f} to {found.high:.3f})'
    return f'{found.mean:9.3f} {interval:16}'


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.explain',
        description="Measures whether a network's heat maps point at bleedings.",
        epilog='Example: python -m bhcnet_jax.explain runs/balanced-head_ct --how=grad_cam',
    )
    parser.add_argument('model', metavar='MODEL', help='a run directory, a bundle or phantom')
    parser.add_argument('--how', default='hires_cam', choices=tuple(saliency.METHODS), help='default: hires_cam')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR',
                        help='an existing folder; default: the run directory, if MODEL is one')  # fmt: skip
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    flags = parser.parse_args(arguments)
    path = pathlib.Path(flags.model)
    out = flags.out or (path if flags.model != 'phantom' and path.is_dir() else None)
    try:
        judged = localization.judge(load(flags.model, flags.trials), flags.how)
        print('\n'.join(_lines(judged)))
        if out:
            print(f'Written to {localization.write(judged, out)}.')
    except UserError as error:
        fail(error)


if __name__ == '__main__':
    main()
