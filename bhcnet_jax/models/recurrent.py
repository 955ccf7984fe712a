"""The paper's hybrids: the same convolutions, then an LSTM or GRU that reads the feature map row by row (V.C)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from bhcnet_jax.keys import Key, Part, between
from bhcnet_jax.models import convolution, layers
from bhcnet_jax.models.family import Family

State = tuple[jax.Array, jax.Array]  # cell and hidden state of the LSTM; the GRU's one state twice. [B, units] each


def _lstm(state: State, from_inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> State:
    memory, hidden = state
    i, f, g, o = jnp.split(from_inputs + hidden @ kernel + bias, 4, axis=-1)
    memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * nn.tanh(g)
    return memory, nn.sigmoid(o) * nn.tanh(memory)


def _gru(state: State, from_inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> State:
    hidden = state[1]
    from_state = jnp.split(hidden @ kernel, 3, axis=-1)
    r, z, n = jnp.split(from_inputs, 3, axis=-1)
    r, z = nn.sigmoid(r + from_state[0]), nn.sigmoid(z + from_state[1])
    hidden = (1.0 - z) * nn.tanh(n + r * (from_state[2] + bias)) + z * hidden
    return hidden, hidden


# A step, its gates, and those of them that add a bias to what comes from the inputs and from the state.
CELLS = {'lstm': (_lstm, 'ifgo', '', 'ifgo'), 'gru': (_gru, 'rzn', 'rzn', 'n')}


class Weights(nn.Module):
    """The parameters of an `nn.Dense`, of which several are computed in one product. -> kernel, bias or None."""

    inputs: int
    features: int
    use_bias: bool
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param('kernel', self.kernel_init, (self.inputs, self.features))
        return kernel, self.param('bias', nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None


class Recurrent(nn.Module):
    """float [B, T, D] -> [B, units], the last state; the parameters are those of flax's OptimizedLSTMCell or GRUCell.

    What comes from the inputs is one product for all steps: in the scan, each step would read megabytes of weights.
    """

    cell: str
    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step, gates, input_biases, state_biases = CELLS[self.cell]
        kernel, bias = self._joined('i', x.shape[-1], gates, input_biases, nn.initializers.lecun_normal())
        from_inputs = convolution.product(x, kernel) + bias  # [B, T, gates x units]
        kernel, bias = self._joined('h', self.units, gates, state_biases, nn.initializers.orthogonal())
        zeros = jnp.zeros((x.shape[0], self.units), self.dtype)  # len() fails on an exported, symbolic batch

        def read(state: State, from_input: jax.Array) -> tuple[State, None]:
            return step(state, from_input, kernel, bias), None

        # Steps that are compiled as one: a GPU takes longer to begin a small one than to compute it.
        unroll = 1 if jax.default_backend() == 'cpu' else 8
        return lax.scan(read, (zeros, zeros), from_inputs.swapaxes(0, 1), unroll=unroll)[0][1]

    def _joined(
        self, source: str, inputs: int, gates: str, biases: str, init: nn.initializers.Initializer
    ) -> tuple[jax.Array, jax.Array | float]:
        """The kernels of all gates side by side, and their biases; 0 without any."""
        weights = [Weights(inputs, self.units, gate in biases, init, name=source + gate)() for gate in gates]
        kernel = jnp.concatenate([kernel for kernel, _ in weights], axis=-1).astype(self.dtype)
        present = [bias.astype(self.dtype) for _, bias in weights if bias is not None]
        return kernel, jnp.concatenate(present) if present else 0.0


class CNNRecurrent(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B]; `cell` is lstm or gru.

    The paper does not say what the sequence is; here a step is a row of the feature map, its features are the row's
    columns x channels, and the last state goes to the head. The other arguments are as in `CNN`.
    """

    cell: str
    filters: tuple[int, ...]
    recurrent_units: int
    hidden_units: int
    convs: int = 1
    norm: str = 'none'
    mask_head: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
        mask: layers.Mask | None = None,
    ) -> jax.Array:
        trunk = layers.ConvTrunk(self.filters, self.convs, self.norm, self.mask_head, self.dtype, name='trunk')
        x = trunk(x, mask)  # [B, T, W/4, F]
        x = x.reshape(*x.shape[:2], -1)  # [B, T, D]
        x = Recurrent(self.cell, self.recurrent_units, self.dtype, name=self.cell)(x)  # [B, units]
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, values, dropout_keys)


def _create(cell: str, config: ConfigDict) -> CNNRecurrent:
    return CNNRecurrent(cell=cell, recurrent_units=config.recurrent_units, **layers.settings(config))


def _family(cell: str) -> Family:
    return Family(
        create=functools.partial(_create, cell),
        keys=(*layers.KEYS, RECURRENT_UNITS),
        check=layers.check,
        composite=((cell,),),  # its gates are one layer
        first_convolution=layers.FIRST_CONVOLUTION,
        maps=layers.MAPS,
    )


RECURRENT_UNITS = Key('model.recurrent_units', between(1, 2**16), Part.PROGRAM)
LSTM, GRU = _family('lstm'), _family('gru')
