"""The paper's hybrids: the same convolutions, then an LSTM or GRU that reads the feature map row by row (VI.C)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bhcnet_jax.models import layers

CELLS = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}


class CNNRecurrent(nn.Module):
    """float [B, H, W, 1] in [0, 1] -> logits float32 [B]; `cell` is lstm or gru.

    The paper does not say what the sequence is; here a step is a row of the feature map, its features are the row's
    columns x channels, and the last state goes to the head. Dropout arguments as in `CNN`.
    """

    cell: str
    filters: tuple[int, ...]
    recurrent_units: int
    hidden_units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, dropout_rate: jax.Array | None = None, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        x = layers.ConvTrunk(self.filters, self.dtype, name='trunk')(x)  # [B, T, W/4, F]
        batch, rows, columns, channels = x.shape
        x = x.reshape(batch, rows, columns * channels)  # [B, T, D]
        cell = CELLS[self.cell](self.recurrent_units, dtype=self.dtype, name=self.cell)
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)  # zeros in float32, whatever the key
        carry = jax.tree.map(lambda state: state.astype(self.dtype), carry)
        x = nn.RNN(cell)(x, initial_carry=carry)[:, -1]  # [B, units]
        return layers.Head(self.hidden_units, self.dtype, name='head')(x, dropout_rate, dropout_keys)
