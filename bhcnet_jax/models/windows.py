"""Which pixels the outputs of a layer see: squares that slide over an image with a margin.

B batch, H W pixels, C channels; h w outputs along the sides.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Margin = tuple[tuple[int, int], tuple[int, int]]  # pixels above and below, left and right


class Window(NamedTuple):
    """Squares of `size` pixels a side, `stride` apart, over an image with `margin` around it."""

    size: int = 3
    stride: int = 1
    margin: Margin = ((1, 1), (1, 1))

    def outputs(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """h and w for an image [B, H, W, C]. A last square that does not fit is left out."""
        height, width = (
            (side + sum(margin) - self.size) // self.stride + 1
            for side, margin in zip(shape[1:3], self.margin, strict=True)
        )
        return height, width


def window(shape: tuple[int, ...], size: int, stride: int = 1, margin: int | str = 'centred') -> Window:
    """A window over an image [B, H, W, C].

    margin: pixels at each side; 'centred': half a square, so that stride 1 keeps the size; 'same': at a side, so many
    that there are side / stride outputs, rounded up (TensorFlow); 'ceil': none, but below and right so many that the
    last pixels are seen (Caffe).
    """

    def around(side: int) -> tuple[int, int]:
        if margin == 'same':
            missing = max((-(-side // stride) - 1) * stride + size - side, 0)
            return missing // 2, missing - missing // 2
        if margin == 'ceil':
            return 0, -(side - size) % stride
        both = size // 2 if margin == 'centred' else int(margin)
        return both, both

    return Window(size, stride, (around(shape[1]), around(shape[2])))


def shifted(x: jax.Array, seen: Window, fill: float = 0.0) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """For each place in the squares, (row, column), the pixels there: [B, h, w, C]. fill: of the margin."""
    height, width = seen.outputs(x.shape)
    padded = jnp.pad(x, ((0, 0), *seen.margin, (0, 0)), constant_values=fill)
    for i, j in itertools.product(range(seen.size), range(seen.size)):
        yield (i, j), every(every(padded, 1, i, height, seen.stride), 2, j, width, seen.stride)


def every(x: jax.Array, axis: int, start: int, count: int, stride: int) -> jax.Array:
    """`count` places of an axis, `stride` apart."""
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def max_pool(x: jax.Array, seen: Window) -> jax.Array:
    """The maximum over each square, [B, H, W, C] -> [B, h, w, C]. Equal maxima share the gradient.

    Rows first, then columns: 2 x size maxima instead of size x size. The gradient of `nn.max_pool` is a
    select-and-scatter.
    """
    padded = jnp.pad(x, ((0, 0), *seen.margin, (0, 0)), constant_values=-jnp.inf)
    for axis, count in enumerate(seen.outputs(x.shape), 1):
        first, *others = (every(padded, axis, place, count, seen.stride) for place in range(seen.size))
        for other in others:
            first = jnp.maximum(first, other)
        padded = first
    return padded
