"""Packs a trained network, or an ensemble, into one file that needs no run directory.

    python -m bhcnet_jax.bundle RUN_DIR --out=model.bhc [--trials='seed=0 fold=3']

`bhcnet_jax.load('model.bhc')` and `python -m bhcnet_jax.predict model.bhc` take it; see inference/bundles.py.
"""

import pathlib
import sys
from collections.abc import Sequence

from bhcnet_jax.errors import Parser, UserError
from bhcnet_jax.inference import bundles, trained


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.bundle', description='Packs a trained network, or an ensemble, into one file.'
    )
    parser.add_argument('run_dir', type=pathlib.Path, metavar='RUN_DIR')
    parser.add_argument('--out', required=True, type=pathlib.Path, metavar='FILE', help='the bundle, model.bhc')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'")
    flags = parser.parse_args(arguments)
    try:
        chosen = trained.select(flags.run_dir, flags.trials)
        model = trained.read(flags.run_dir, chosen)
        bundles.write(model, chosen, flags.out)
    except UserError as error:
        sys.exit(f'error: {error}')
    networks = f'{len(model.members)} networks' if len(model.members) > 1 else 'one network'
    print(f'{networks} of {model.name}, trained on {model.dataset}, in {flags.out} ({flags.out.stat().st_size} bytes)')


if __name__ == '__main__':
    main()
