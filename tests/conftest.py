"""Two CPU devices, strict dtype promotion, absl flags parsed: what every test here relies on."""

import os

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
from absl import flags

jax.config.update('jax_numpy_dtype_promotion', 'strict')
flags.FLAGS.mark_as_parsed()  # grain reads absl flags; under pytest nobody else parses them
