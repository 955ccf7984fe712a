"""The version of the drawing of heads.py, part of the identity of what is trained or scored on its heads."""

import ast
import functools
import hashlib
import importlib
import inspect
import itertools

from bhcnet_jax.datasets.phantom import heads


@functools.cache
def drawing_version() -> str:
    """SHA-256, hex, over the source of heads.py and of what it imports from its folder: every edit counts.

    Not over pixels: they round otherwise on another kind of device, and a trial has one id on all.
    """
    sources = _sources(heads.__name__)
    return hashlib.sha256(''.join(sources[name] for name in sorted(sources)).encode()).hexdigest()


def _sources(name: str) -> dict[str, str]:
    """The source of a module and of all in its folder that it imports, directly or not, by name."""
    folder, source = name.rpartition('.')[0], inspect.getsource(importlib.import_module(name))
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    found = {each.module for each in imports if each.module.startswith(f'{folder}.')}
    found |= {f'{folder}.{alias.name}' for each in imports if each.module == folder for alias in each.names}
    return dict(itertools.chain({name: source}.items(), *(_sources(each).items() for each in found)))
