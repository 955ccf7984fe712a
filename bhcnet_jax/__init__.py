"""Honest, fast studies of small networks on small medical image sets, in JAX."""

__version__ = '0.1.0'
