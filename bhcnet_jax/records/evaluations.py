"""What a model was found to do on other images: a folder with a JSON file of the numbers and a csv of the images."""

import pathlib
from typing import Any

import pandas as pd

from bhcnet_jax import files
from bhcnet_jax.errors import UserError
from bhcnet_jax.records.spreadsheet import as_text

FORMAT, VERSION = 'bhcnet_jax evaluation', 1
FILE, IMAGES = 'evaluation.json', 'images.csv'
SHAPE = {
    'format': str, 'version': int, 'looks': int, 'model': {'name': str, 'trials': [str], 'threshold': float},
    'data': {'dataset': str, 'fingerprint': str, 'images': int}, 'results': [{'of': str}], 'subgroups': [{'of': str}],
}  # fmt: skip


def write(found: dict[str, Any], rows: pd.DataFrame, out: pathlib.Path, command: str) -> int:
    """Writes `evaluation.json` and `images.csv` into a folder; -> how often these images were looked at, now included.

    Earlier looks are those that the folder's evaluation.json counts, whatever the model. UserError: it cannot be
    written, or holds an evaluation on other images.
    """
    looks = 1
    try:
        earlier = read(out / FILE)
    except FileNotFoundError:
        pass
    else:
        if earlier['data']['fingerprint'] != found['data']['fingerprint']:
            raise UserError(f'{out} holds an evaluation on other images ({earlier["data"]["dataset"]}). Name another.')
        looks += earlier['looks']
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / FILE, {**found, 'looks': looks, 'command': command})
        with files.replacing(out / IMAGES) as file:
            as_text(rows).to_csv(file, index=False)
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}. Name another folder.') from error
    return looks


def read(path: pathlib.Path) -> dict[str, Any]:
    """An evaluation.json. FileNotFoundError: there is none. UserError: damaged, or of a newer version."""
    found = files.read_json(path, SHAPE, 'Evaluate again into another folder.')
    if found['format'] != FORMAT or found['version'] > VERSION:
        raise UserError(f'{path}: {found["format"]!r} {found["version"]}, expected {FORMAT!r} up to {VERSION}.')
    return found
