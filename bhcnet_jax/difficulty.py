"""Measures how hard a bleeding may be to see for a network to find it, on drawn heads that no network has seen.

    python -m bhcnet_jax.difficulty MODEL [--heads=2000] [--out=DIR] [--trials='seed=0 fold=3']

MODEL is a run directory, a bundle, or `phantom`, the model of the package. Sensitivity is told by the contrast to noise
and the area of the blood, specificity on heads with what is not blood but looks like it, and, for networks with a mask
head, how well it outlines the blood (Dice). A run directory gets difficulty.json, which the report shows.
"""

import pathlib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bhcnet_jax import load
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import difficulty
from bhcnet_jax.inference.difficulty import DISTRACTORS, Bin, Found, Overlap, Rate


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*heads, title=f'PHANTOM: {title}')
    for row in rows:
        table.add_row(*row)
    return table


def _rate(rate: Rate) -> list[str]:
    if not rate.n:
        return ['-', '0']
    low, high = rate.interval
    return [f'{rate.value:.3f} ({low:.3f} to {high:.3f})', str(rate.n)]


def _overlap(each: Overlap) -> list[str]:
    ends = '' if each.low is None else f' ({each.low:.3f} to {each.high:.3f})'
    return [f'{each.mean:.3f}{ends}', str(each.n)]


def _bins(bins: Sequence[Bin]) -> list[list[str]]:
    return [[f'{each.low:.3g} to {each.high:.3g}', *_rate(each.rate)] for each in bins]


def show(found: Found, console: Console) -> None:
    """Prints what was found."""
    networks = f'{len(found.trials)} networks' if len(found.trials) > 1 else 'one network'
    console.print(
        f'PHANTOM: {found.heads} drawn heads. {found.recipe}, {networks} trained on {found.trained_on}, called '
        f'positive from {found.decided}.', markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(_table('contrast to noise', ('contrast', 'sensitivity', 'n'), _bins(found.contrast)))
    console.print(_table('visible area', ('mm2', 'sensitivity', 'n'), _bins(found.area)))
    kinds = [['all', *_rate(found.sensitivity)], *([name, *_rate(each)] for name, each in found.kinds.items())]
    console.print(_table('bleedings', ('kind', 'sensitivity', 'n'), kinds))
    quiet = [[DISTRACTORS.get(name, name), *_rate(each)] for name, each in found.specificity.items()]
    console.print(_table('heads without blood', ('with', 'specificity', 'n'), quiet))
    if found.contoured is not None:
        rows = [[name, *_overlap(each)] for name, each in found.dice.items()]
        console.print(_table('outlines of the mask head', ('kind', 'Dice', 'n'), rows))
        none, n = _rate(found.contoured)
        console.print(f'Without any outline: {none} of {n} heads without blood.', markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.difficulty',
        description=__doc__.splitlines()[0],
        epilog='Example: python -m bhcnet_jax.difficulty runs/pretrained',
    )
    parser.add_argument('model', metavar='MODEL', help='a run directory, a bundle or phantom')
    parser.add_argument('--heads', type=int, default=2000, help='how many are drawn; default: 2000')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR',
                        help='an existing folder; default: the run directory, if MODEL is one')  # fmt: skip
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    flags = parser.parse_args(arguments)
    path = pathlib.Path(flags.model)
    out = flags.out or (path if flags.model != 'phantom' and path.is_dir() else None)
    try:
        if flags.heads < difficulty.FEWEST:
            raise UserError(f'--heads={flags.heads}: expected at least {difficulty.FEWEST}.')
        found = difficulty.judge(load(flags.model, flags.trials), flags.heads)
        show(found, Console())
        if out:
            print(f'Written to {difficulty.write(found, out)}.')
    except UserError as error:
        fail(error)


if __name__ == '__main__':
    main()
