"""From a prepared data set to arrays: tfds data source -> grain -> decode, grey, resize -> uint8."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.datasets.folder import folder_dataset_builder, images, source
from bhcnet_jax.datasets.head_ct import head_ct_dataset_builder
from bhcnet_jax.errors import UserError

BUILDERS = {
    'auto': head_ct_dataset_builder.Builder,
    'head_ct': head_ct_dataset_builder.Builder,
    'folder': folder_dataset_builder.Builder,
}
THUMBNAIL_SIZE = 128  # pixels; the size at which look-alikes were studied, see splits.py
MANUAL = 'the manual folder of tensorflow_datasets'
PHANTOM_NOTICE = """
**********************************************************************
*  PHANTOM: no real images were found, so this runs on SYNTHETIC     *
*  ones. Its results say nothing about head CT. The real images:     *
*  https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage *
*  then --config.dataset.dir=FOLDER_OR_ZIP, or HEAD_CT_DIR.          *
**********************************************************************
Looked in %s."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A whole labelled image set in memory. N images, H = W pixels.

    Attributes:
      name: the data set's name: head_ct, phantom or folder.
      synthetic: True where the images are drawn, not taken; everything made from them is marked PHANTOM.
      fingerprint: SHA-256 over the published files, hex.
      ids: unique name of every image, N strings.
      images: uint8 [N, H, W], grey.
      thumbnails: uint8 [N, 128, 128], grey; what images are compared by, whatever H is.
      labels: int32 [N], 1 = hemorrhage.
      groups: N strings from the publisher's own grouping (a patient, say); '' where there is none.
      pixel_sha256: N hex digests of the grey pixels at the published size (equal = exact duplicate).
      heights, widths: int32 [N], pixels as published.
      modes: N strings, Pillow's mode as published (L, LA, P, RGB, RGBA, I;16 ...).
      coloured: bool [N], whether any pixel's red, green and blue differ.
      file_bytes: int32 [N], size of the published file.
      turned_sha256: N hex digests, equal where the pixels are after one of the eight turns and flips; () if unknown.
    """

    name: str
    synthetic: bool
    fingerprint: str
    ids: tuple[str, ...]
    images: np.ndarray
    thumbnails: np.ndarray
    labels: np.ndarray
    groups: tuple[str, ...]
    pixel_sha256: tuple[str, ...]
    heights: np.ndarray
    widths: np.ndarray
    modes: tuple[str, ...]
    coloured: np.ndarray
    file_bytes: np.ndarray
    turned_sha256: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The set's name in everything that a run writes; PHANTOM where the images are synthetic."""
        return 'PHANTOM' if self.synthetic else self.name


def load(dataset: ConfigDict) -> ImageSet:
    """Finds, checks, prepares (once) and decodes the set that config.dataset names.

    dataset: name, dir, image_size and equalise (False where it is missing) as in configs/base.py. Images keep the
    order of the labels.csv; their thumbnails are never equalised. The prepared copy lies in $TFDS_DATA_DIR (default
    ~/tensorflow_datasets) in a folder named by the fingerprint, so a changed source never meets a stale copy. An
    image's height and width are those of the published file turned upright by its EXIF tag.
    UserError, one line: no set there, or something wrong with it.
    """
    if dataset.image_size < 1:
        raise UserError(f'config.dataset.image_size is {dataset.image_size}, expected 1 or more pixels.')
    builder_cls, config = _choose(dataset)
    with _quiet_tfds():
        builder = _prepare(builder_cls, config)
        columns = _read(builder, dataset)
    fingerprint = source.fingerprint(
        zip(columns['id'], columns['label'], columns['group'], columns['file_sha256'], strict=True)
    )
    if builder_cls.name != 'phantom' and fingerprint != config.name:
        raise _damaged(builder, 'its images are not those of its source')
    return ImageSet(
        name=builder_cls.name,
        synthetic=builder_cls.name == 'phantom',
        fingerprint=fingerprint,
        ids=columns['id'],
        images=np.stack(columns['image']),
        thumbnails=np.stack(columns['thumbnail']),
        labels=np.array(columns['label'], np.int32),
        groups=columns['group'],
        pixel_sha256=columns['pixel_sha256'],
        heights=np.array(columns['height'], np.int32),
        widths=np.array(columns['width'], np.int32),
        modes=columns['mode'],
        coloured=np.array(columns['coloured'], bool),
        file_bytes=np.array(columns['file_bytes'], np.int32),
        turned_sha256=columns['turned_sha256'],
    )


def decode(record: dict[str, Any], image_size: int, resolution: int = 0) -> dict[str, Any]:
    """A record of the prepared copy -> one image's fields of ImageSet, and file_sha256.

    resolution: pixels that `images.equalise` leaves of the head; 0: the image stays as published. The resize is
    Pillow's bilinear: a triangle filter that widens with the reduction (antialiased) and, unlike bicubic or Lanczos,
    never overshoots. The aspect ratio is not kept, as in the paper.
    """
    data = record['image']
    with Image.open(io.BytesIO(data)) as published:
        mode, coloured = published.mode, images.is_coloured(published)
        grey = images.to_grey(published)
    pixels = f'{grey.width}x{grey.height} '.encode() + grey.tobytes()
    return {
        'image': _resize(images.equalise(grey, resolution) if resolution else grey, image_size),
        'thumbnail': _resize(grey, THUMBNAIL_SIZE),
        'label': int(record['label']),
        'id': record['id'].decode(),
        'group': record['group'].decode(),
        'pixel_sha256': hashlib.sha256(pixels).hexdigest(),
        'turned_sha256': _turned_sha256(np.asarray(grey)),
        'height': grey.height,
        'width': grey.width,
        'mode': mode,
        'coloured': coloured,
        'file_bytes': len(data),
        'file_sha256': hashlib.sha256(data).hexdigest(),
    }


def _turned_sha256(pixels: np.ndarray) -> str:
    """The same for an image [H, W] and all that it becomes by turns of 90 degrees and flips."""
    ways = [np.rot90(each, quarter) for each in (pixels, pixels.T) for quarter in range(4)]
    return hashlib.sha256(min(f'{way.shape} '.encode() + way.tobytes() for way in ways)).hexdigest()


def _resize(grey: Image.Image, size: int) -> np.ndarray:
    return np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))


def _choose(dataset: ConfigDict) -> tuple[type[tfds.core.DatasetBuilder], tfds.core.BuilderConfig]:
    """The builder, and the config whose name is the folder of its prepared copy."""
    if dataset.name == 'phantom':
        return _phantom()
    if dataset.name not in BUILDERS:
        names = ', '.join(BUILDERS)
        raise UserError(f'config.dataset.name is {dataset.name!r}, expected phantom, {names}.')
    builder_cls = BUILDERS[dataset.name]
    files, looked = _find(dataset)
    if files is None and dataset.name == 'auto' and not dataset.dir:
        logging.warning(PHANTOM_NOTICE, looked)
        return _phantom()
    if files is None:
        how_to_get = builder_cls.MANUAL_DOWNLOAD_INSTRUCTIONS
        raise UserError(f'no {builder_cls.name} images: looked in {looked}. {how_to_get}')
    labelled = source.read(files, builder_cls.LAYOUT)
    if labelled.layout.published not in (None, labelled.fingerprint):
        logging.warning(
            '%s differs from the published set (fingerprint %s, published %s); going on with what is there.',
            *(files.root, labelled.fingerprint, labelled.layout.published),
        )
    return builder_cls, folder_dataset_builder.SourceConfig(name=labelled.fingerprint, labelled=labelled)


def _phantom() -> tuple[type[tfds.core.DatasetBuilder], tfds.core.BuilderConfig]:
    from bhcnet_jax.datasets.phantom import phantom_dataset_builder  # heavy, and needless for real images

    config = tfds.core.BuilderConfig(name=phantom_dataset_builder.fingerprint())
    return phantom_dataset_builder.Builder, config


def _find(dataset: ConfigDict) -> tuple[source.Files | None, str]:
    """The files of the first set found; or None and, in words, where it looked and what is there.

    A place that the user named and that holds something else is an error: no other set may step in for it.
    """
    places = _places(dataset)
    looked = ['$HEAD_CT_DIR (not set)'] if list(places) == [MANUAL] else []
    for place, path in places.items():
        files = source.find(path)
        if source.tables(files):
            return files, ''
        count = len(files.handles)
        found = f'{count} files, no labels.csv' if count else 'empty' if path.exists() else 'does not exist'
        looked.append(f'{place} {path} ({found})')
        if count and place != MANUAL:
            raise UserError(f'no labelled images in {looked[-1]}, expected labels.csv or a zip with it.')
    return None, ', '.join(looked)


def _places(dataset: ConfigDict) -> dict[str, Path]:
    if dataset.dir:
        return {'config.dataset.dir': Path(dataset.dir).expanduser()}
    if dataset.name == 'folder':
        raise UserError('config.dataset.dir is empty, expected the folder or zip of the labelled images.')
    named = os.environ.get('HEAD_CT_DIR')
    places = {'$HEAD_CT_DIR': Path(named).expanduser()} if named else {}
    return places | {MANUAL: _data_dir() / 'downloads' / 'manual'}


def _prepare(
    builder_cls: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig
) -> tfds.core.DatasetBuilder:
    """Writes the prepared copy where there is none: into a temporary folder, renamed once it is complete."""
    builder = builder_cls(data_dir=_data_dir(), config=config)
    try:
        builder.download_and_prepare()
    except OSError as error:
        if not builder.data_path.exists():  # else another process has prepared the same copy meanwhile
            raise UserError(
                f'{builder.data_dir}: the prepared copy cannot be written ({images.reason(error)}). '
                'Point TFDS_DATA_DIR to a folder with room.'
            ) from error
    return builder_cls(data_dir=_data_dir(), config=config)  # as it is on disk, whoever wrote it


def _read(builder: tfds.core.DatasetBuilder, dataset: ConfigDict) -> dict[str, tuple[Any, ...]]:
    """All records decoded, in the set's order, as columns."""
    published_bytes = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        (records,) = builder.as_data_source(decoders=published_bytes).values()
        resolution = min(_each(records, _head_side)) if dataset.get('equalise', False) else 0
        rows = _each(records, functools.partial(decode, image_size=dataset.image_size, resolution=resolution))
    except Exception as error:  # array_record, protobuf and Pillow raise each their own on a broken copy
        raise _damaged(builder, images.reason(error)) from error
    return {key: tuple(row[key] for row in rows) for key in rows[0]}


def _each(records: Any, function: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """A function of every record, in order, on all cores."""
    threads = grain.ReadOptions(num_threads=os.cpu_count() or 1)
    return list(grain.MapDataset.source(records).map(function).to_iter_dataset(threads))


def _head_side(record: dict[str, Any]) -> int:
    """The shorter side of the box around a head, pixels as published."""
    with Image.open(io.BytesIO(record['image'])) as published:
        left, top, right, bottom = images.head_box(np.asarray(images.to_grey(published)))
    return min(right - left, bottom - top)


def _damaged(builder: tfds.core.DatasetBuilder, what: str) -> UserError:
    return UserError(f'{builder.data_dir}: prepared copy is damaged ({what}). Delete it and start again.')


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps the terminal to this project's own lines: tfds prints, draws bars and logs by itself."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _data_dir() -> Path:
    return Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser().absolute()
