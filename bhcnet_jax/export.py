"""Writes a trained network, or an ensemble, as a program for other readers.

    python -m bhcnet_jax.export MODEL --out=model.onnx [--trials='seed=0 fold=3']

MODEL is a run directory, a bundle, or `phantom`, the model of the package. The ending chooses: .onnx, or .stablehlo,
which `jax.export.deserialize` reads. See inference/formats.py.
"""

import pathlib
from collections.abc import Sequence

from bhcnet_jax import load
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.inference import formats


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.export',
        description='Writes a trained network, or an ensemble, for other readers.',
        epilog='Example: python -m bhcnet_jax.export runs/smoke-PHANTOM --out=model.onnx',
    )
    parser.add_argument('model', metavar='MODEL', help='a run directory, a bundle or phantom')
    parser.add_argument('--out', required=True, type=pathlib.Path, metavar='FILE', help='model.onnx or model.stablehlo')
    parser.add_argument('--trials', default='', help="which of the run's trials, as in 'seed=0 fold=3'; default: all")
    flags = parser.parse_args(arguments)
    try:
        model = load(flags.model, flags.trials)
        difference = formats.write(model, flags.out)
    except UserError as error:
        fail(error)
    size = model.image_size
    print(
        f'{flags.out}: uint8 [N, {size}, {size}] -> logits float32 [N] of {model.name}, trained on {model.trained_on}. '
        f'On {formats.CHECKED} drawn heads they differ from the model by at most {difference:.1g}. For research only.'
    )


if __name__ == '__main__':
    main()
