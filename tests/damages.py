"""What may become of a JSON file: no JSON, other JSON, and what it holds with one part mutated."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from bhcnet_jax.errors import UserError

STRANGE = (None, float('inf'), 'x', '\ud800\x00', ['x', [1]], {'x': {'x': 1}})
TEXTS = ('', '{', '[]', '{}', 'null', '[[1]]', 'NaN', '9' * 5000, '[' * 10**5, '{"x":' * 60 + '1' + '}' * 60)
ENDLESS = "python -m bhcnet_jax.main --sweep='batch_size=1:10000 augment.samples=1:10000 seed=0:10000'"


def of_file(file: pathlib.Path) -> list[str]:
    """Texts to replace a file of a run directory."""
    tree = json.loads(file.read_text())
    endless = [json.dumps([{**tree[0], 'sweep': '', 'command': ENDLESS}])] if file.name == 'env.json' else []
    return [*TEXTS, *endless, *map(json.dumps, _mutations(tree))]


def _mutations(tree: Any) -> Iterator[Any]:
    """The tree without one of its parts, or with another value for it; of a list or many keys, the first part."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    for key in keys if isinstance(tree, dict) and len(keys) < 16 else keys[:1]:
        changed = tree.copy()
        del changed[key]
        yield changed
        inner = _mutations(tree[key]) if isinstance(tree[key], dict | list) else ()
        for value in (*STRANGE, *inner):
            changed = tree.copy()
            changed[key] = value
            yield changed


def assert_read_or_named(read: Callable[[], Any], file: pathlib.Path) -> None:
    """For each damage to the file: it is read nevertheless, or one line names the file and says what to do."""
    whole, ends = file.read_text(), []
    for text in of_file(file)[::3]:  # two or three damages to each part
        file.write_text(text)
        try:
            read()
        except UserError as error:
            told = str(error)
            assert str(file.parent) in told and ('Restore ' in told or 'Start the training again' in told), told
            ends.append(False)
        else:
            ends.append(True)
    file.write_text(whole)
    assert True in ends and False in ends
