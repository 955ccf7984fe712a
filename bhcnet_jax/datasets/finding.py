"""Which set a config names: real images where it says or where they usually lie, else the phantom."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from absl import logging
from ml_collections import ConfigDict

from bhcnet_jax.datasets.folder import source
from bhcnet_jax.datasets.head_ct.layout import LAYOUT as HEAD_CT
from bhcnet_jax.errors import UserError

LAYOUTS = {'auto': HEAD_CT, 'head_ct': HEAD_CT, 'folder': source.Layout()}
RESERVED = ('head_ct', 'phantom')  # names of published sets, which a folder does not get
MANUAL = 'the manual folder of tensorflow_datasets'
PHANTOM_NOTICE = """
**********************************************************************
*  PHANTOM: no real images were found, so this runs on SYNTHETIC     *
*  ones. Its results say nothing about head CT. The real images:     *
*  https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage *
*  then --config.dataset.dir=FOLDER_OR_ZIP, or HEAD_CT_DIR.          *
**********************************************************************
Looked in %s."""


class Chosen(NamedTuple):
    """The set that a config names.

    name: of its tfds builder. fingerprint: of its source, and the folder of its prepared copy. labelled: the source;
    None: drawn.
    """

    name: str
    fingerprint: str
    labelled: source.LabelledSet | None


def choose(dataset: ConfigDict) -> Chosen:
    """dataset: as of `input_pipeline.load`. UserError: there is no such set, or something is wrong with it."""
    if dataset.name == 'phantom':
        return _phantom()
    if dataset.name not in LAYOUTS:
        names = ', '.join(LAYOUTS)
        raise UserError(f'config.dataset.name is {dataset.name!r}, expected phantom, {names}.')
    layout = LAYOUTS[dataset.name]
    files, looked = _find(dataset)
    if files is None and dataset.name == 'auto':
        print(PHANTOM_NOTICE % looked, file=sys.stderr, flush=True)
        return _phantom()
    if files is None:
        raise UserError(f'no {layout.name} images: looked in {looked}. {layout.how_to_get}')
    named = dataset.dir or os.environ.get('HEAD_CT_DIR')
    if dataset.name == 'auto' and named and not source.is_laid_out(files, layout):
        layout = LAYOUTS['folder']
    columns, positive = (dataset.get(key, '') for key in ('columns', 'positive'))
    labelled = source.read(files, layout, columns, positive)
    if labelled.layout.published not in (None, labelled.fingerprint):
        logging.warning(
            '%s differs from the published set (fingerprint %s, published %s); going on with what is there.',
            *(files.root, labelled.fingerprint, labelled.layout.published),
        )
    return Chosen(layout.name, labelled.fingerprint, labelled)


def _phantom() -> Chosen:
    from bhcnet_jax.datasets.phantom import source as drawn  # heavy, and needless for real images

    return Chosen('phantom', drawn.fingerprint(), None)


def _find(dataset: ConfigDict) -> tuple[source.Files | None, str]:
    """The files of the first set found; or None and, in words, where it looked and what is there.

    A place that the user named and that holds no set is an error: no other set may step in for it.
    """
    places = _places(dataset)
    looked = ['$HEAD_CT_DIR (not set)'] if list(places) == [MANUAL] else []
    for place, path in places.items():
        files = source.find(path)
        by_folders = place != MANUAL and dataset.name != 'head_ct'
        if source.tables(files) or (by_folders and source.class_folders(files)):
            return files, ''
        count = len(files.handles)
        found = f'{count} files, no labels.csv' if count else 'empty' if path.exists() else 'does not exist'
        looked.append(f'{place} {path} ({found})')
        if place != MANUAL:
            layout = LAYOUTS['head_ct' if dataset.name == 'head_ct' else 'folder']
            raise UserError(f'no labelled images in {looked[-1]}. {layout.how_to_get}')
    return None, ', '.join(looked)


def _places(dataset: ConfigDict) -> dict[str, Path]:
    if dataset.dir:
        return {'config.dataset.dir': _path('config.dataset.dir', dataset.dir)}
    if dataset.name == 'folder':
        raise UserError('config.dataset.dir is empty, expected the folder or zip of the labelled images.')
    named = os.environ.get('HEAD_CT_DIR')
    places = {'$HEAD_CT_DIR': _path('$HEAD_CT_DIR', named)} if named else {}
    return places | {MANUAL: data_dir() / 'downloads' / 'manual'}


def _path(place: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f'{place} is {text!r}, but there is no such user. Write the whole path.') from error


def data_dir() -> Path:
    """Where tfds keeps prepared copies: $TFDS_DATA_DIR, else its usual place."""
    path = _path('$TFDS_DATA_DIR', os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f'$TFDS_DATA_DIR {path} is no name in UTF-8. Set it to another folder.') from error
    return path


def name_of(dataset: ConfigDict, kind: str, labelled: source.LabelledSet | None) -> str:
    """What the data set is called: `dataset.label`, else as its folder or zip; published sets have their own names."""
    if kind != 'folder':
        return kind
    label = dataset.get('label', '')
    if '/' in label or not label.isprintable():
        raise UserError(f'config.dataset.label is {label!r}, expected a name without / and line breaks.')
    root = Path(os.path.abspath(labelled.files.root))
    name = label or (root.stem if root.is_file() else root.name) or kind
    name = name.encode('utf-8', 'backslashreplace').decode()
    return f'{name} (folder)' if name.casefold() in RESERVED else name
