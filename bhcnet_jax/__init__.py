"""Honest, fast studies of small networks on small medical image sets, in JAX."""

import sys

from bhcnet_jax import startup

__version__ = '0.1.0'

if startup.is_command(sys.argv):
    startup.prepare()
