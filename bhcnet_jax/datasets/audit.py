"""`python -m bhcnet_jax.datasets.audit`: the audit by its former name; see `bhcnet_jax/audit.py`."""

from bhcnet_jax.audit import main

if __name__ == '__main__':
    main()
