"""From a published data set to arrays: a copy prepared once by tfds -> grain -> decode, grey, resize -> uint8.

tfds and grain take longer to import than the images of a small set take to read. They are imported where a set is
opened at a size for the first time; what they gave is kept for the next time, see `kept.py`.
"""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax import machine
from bhcnet_jax.datasets import finding, kept, preprocessing
from bhcnet_jax.datasets.folder import images, source, table
from bhcnet_jax.datasets.head_ct.layout import LAYOUT as HEAD_CT
from bhcnet_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DARK_LEVELS = 128  # of 256; a 16-bit image that keeps no more uses 15 bits or fewer
IMAGE_BYTES = 2**30  # memory that decoding and equalising an image of images.MAX_PIXELS may take


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A whole labelled image set in memory. N images, H = W pixels.

    Attributes:
      name: the data set's name: head_ct, phantom, or what `dataset.label` or the folder calls it.
      synthetic: True where the images are drawn, not taken; everything made from them is marked PHANTOM.
      fingerprint: SHA-256 over the published files, hex.
      ids: unique name of every image, N strings.
      images: uint8 [N, H, W], grey; of volumes [N, D, H, W], from the neck to the vertex.
      thumbnails: uint8 [N, 128, 128], grey; what images are compared by, whatever H is.
      labels: int32 [N], 1 = positive.
      groups: N strings from the publisher's own grouping (a patient, say); '' where there is none.
      pixel_sha256: N hex digests of the grey pixels at the published size (equal = exact duplicate).
      heights, widths: int32 [N], pixels as published.
      modes: N strings, Pillow's mode as published (L, LA, P, RGB, RGBA, I;16 ...).
      coloured: bool [N], whether any pixel's red, green and blue differ.
      file_bytes: int32 [N], size of the published file.
      class_names: of labels 0 and 1.
      columns: further columns of the csv, N strings each, by name.
      turned_sha256: N hex digests, equal where the pixels are after one of the eight turns and flips; () if unknown.
      resolution: pixels that `dataset.equalise` left of each side of a head; 0 if the images are as published.
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
    class_names: tuple[str, str] = table.NUMBERED
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    turned_sha256: tuple[str, ...] = ()
    resolution: int = 0

    @property
    def label(self) -> str:
        """The set's name in everything that a run writes; PHANTOM where the images are synthetic."""
        return 'PHANTOM' if self.synthetic else self.name

    @property
    def pictures(self) -> np.ndarray:
        """The images to show, uint8 [N, H, W]: of a volume its middle slice."""
        return self.images if self.images.ndim == 3 else self.images[:, self.images.shape[1] // 2]


def load(dataset: ConfigDict, resolution: int = 0) -> ImageSet:
    """Finds, checks, prepares (once) and decodes (once at a size) the set that config.dataset names.

    dataset: name, dir, image_size and, where they are not as in configs/base.py, equalise, slices, label, columns and
    positive. With several slices it is the set of drawn patients, whatever the name.
    Images keep the order of the labels.csv or of the class folders; their thumbnails are never equalised. The prepared
    copy holds pixels, no metadata, and only its owner can read it. It lies in $TFDS_DATA_DIR (default
    ~/tensorflow_datasets) in a folder named by the fingerprint, so a changed source never meets a stale copy. So do the
    decoded images; where they are, the prepared copy is not read, and damage to it shows when it is needed again. An
    image's height and width are those of the published file turned upright by its EXIF tag. resolution: of
    `preprocessing.preprocess` for images that are equalised as others were; 0: the smallest head of this set decides.
    UserError, one line: no set there, or something wrong with it.
    """
    if dataset.image_size < 1:
        raise UserError(f'config.dataset.image_size is {dataset.image_size}, expected 1 or more pixels.')
    if dataset.get('slices', 1) > 1:
        return _volumes(dataset)
    chosen = finding.choose(dataset)
    return _image_set(chosen, _columns(chosen, dataset, resolution), dataset)


def _image_set(chosen: finding.Chosen, columns: dict[str, Any], dataset: ConfigDict) -> ImageSet:
    """Columns as a set, with warnings of what is odd about it."""
    labelled = chosen.labelled
    if columns['said']:
        logging.warning('dataset.equalise reduces all images to %s.', columns['said'])
    _warn_of_dark(columns)
    return ImageSet(
        name=finding.name_of(dataset, chosen.name, labelled),
        synthetic=labelled is None,
        fingerprint=_fingerprint(columns),
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
        class_names=labelled.class_names if labelled else HEAD_CT.class_names,
        columns=labelled.columns if labelled else {},
        turned_sha256=columns['turned_sha256'],
        resolution=columns['resolution'],
    )


def _volumes(dataset: ConfigDict) -> ImageSet:
    """Drawn patients, with nothing prepared: their pixels are those of this size and number of slices."""
    from bhcnet_jax.datasets.phantom import held_out  # heavy, and needless for images

    volumes, labels = held_out.draw(dataset.image_size, dataset.slices)
    count, slices, size, _ = volumes.shape
    ids = tuple(f'patient_{place:03d}' for place in range(count))
    sides = np.full(count, size, np.int32)
    return ImageSet(
        name='phantom', synthetic=True, fingerprint=held_out.fingerprint(), ids=ids, images=volumes,
        thumbnails=np.stack([preprocessing.thumbnail(Image.fromarray(volume[slices // 2])) for volume in volumes]),
        labels=labels, groups=ids,
        pixel_sha256=tuple(map(preprocessing.volume_sha256, volumes)),
        heights=sides, widths=sides, modes=('L',) * count, coloured=np.zeros(count, bool),
        file_bytes=np.full(count, volumes[0].nbytes, np.int32), class_names=('normal', 'hemorrhage'),
    )  # fmt: skip


def _warn_of_dark(columns: dict[str, tuple[Any, ...]]) -> None:
    """Says where 16 bits may hold fewer: greys of a scanner's 12 bits become nearly black, since white is 65535."""
    dark = [place for place, levels in enumerate(columns['levels']) if levels <= DARK_LEVELS]
    if dark:
        levels = [columns['levels'][place] for place in dark]
        logging.warning(
            '%d of %d images have 16 bits a sample but keep only %s of 256 grey levels, the first %s. If their white '
            'is not 65535, multiply them up to it.',
            *(len(dark), len(columns['id'])),
            *(f'{min(levels)} to {max(levels)}' if min(levels) < max(levels) else levels[0], columns['id'][dark[0]]),
        )


def _columns(chosen: finding.Chosen, dataset: ConfigDict, resolution: int) -> dict[str, Any]:
    """What `_read` returns; kept for the next time."""
    path = _kept_path(chosen, dataset, resolution)
    columns = kept.read(path)
    if columns is None:
        with _quiet_tfds():
            builder = _prepare(chosen)
            columns = _read(builder, dataset, resolution)
        if chosen.labelled and _fingerprint(columns) != chosen.fingerprint:
            raise _damaged(builder.data_dir, 'its images are not those of its source')
        with _private():
            kept.write(path, columns)
    return columns


def _kept_path(chosen: finding.Chosen, dataset: ConfigDict, resolution: int) -> Path:
    name = kept.file_name(dataset.image_size, dataset.get('equalise', False), resolution)
    return finding.data_dir() / chosen.name / chosen.fingerprint / name


def _fingerprint(columns: dict[str, Any]) -> str:
    return source.fingerprint(
        zip(columns['id'], columns['label'], columns['group'], columns['file_sha256'], strict=True)
    )


def _prepare(chosen: finding.Chosen) -> 'tfds.core.DatasetBuilder':
    """Writes the prepared copy where there is none: into a temporary folder, renamed once it is complete."""
    builder_cls, config = _builder(chosen)
    path = finding.data_dir() / builder_cls.name / config.name / str(builder_cls.VERSION)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _private():
                builder_cls(data_dir=finding.data_dir(), config=config).download_and_prepare()
        except UserError:
            raise
        except Exception as error:  # array_record raises its own on a full disk
            if not path.exists():  # else another process has prepared the same copy meanwhile
                raise UserError(
                    f'{path}: the prepared copy cannot be written ({images.reason(error)}). '
                    'Point TFDS_DATA_DIR to a folder with room.'
                ) from error
    try:
        return builder_cls(data_dir=finding.data_dir(), config=config)  # as it is on disk, whoever wrote it
    except Exception as error:  # protobuf and json raise each their own on a broken copy
        raise _damaged(path, images.reason(error)) from error


def _builder(chosen: finding.Chosen) -> tuple[type['tfds.core.DatasetBuilder'], 'tfds.core.BuilderConfig']:
    """The builder, and the config whose name is the folder of its prepared copy."""
    import tensorflow_datasets as tfds

    from bhcnet_jax.datasets.folder import folder_dataset_builder
    from bhcnet_jax.datasets.head_ct import head_ct_dataset_builder
    from bhcnet_jax.datasets.phantom import phantom_dataset_builder

    if chosen.labelled is None:
        return phantom_dataset_builder.Builder, tfds.core.BuilderConfig(name=chosen.fingerprint)
    builder_cls = {each.LAYOUT.name: each for each in (folder_dataset_builder.Builder, head_ct_dataset_builder.Builder)}
    config = folder_dataset_builder.SourceConfig(name=chosen.fingerprint, labelled=chosen.labelled)
    return builder_cls[chosen.name], config


def _read(builder: 'tfds.core.DatasetBuilder', dataset: ConfigDict, resolution: int) -> dict[str, Any]:
    """All records decoded, in the set's order, as columns; and the `resolution` of `preprocess`, `said` in words."""
    import tensorflow_datasets as tfds

    stored_bytes = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    said = ''
    try:
        (records,) = builder.as_data_source(decoders=stored_bytes).values()
        if dataset.get('equalise', False) and not resolution:
            resolution, said = _smallest_head(records)
        decode = functools.partial(preprocessing.decode, image_size=dataset.image_size, resolution=resolution)
        rows = _each(records, decode)
        columns = {key: tuple(row[key] for row in rows) for key in rows[0]}
        return columns | {'resolution': resolution, 'said': said}
    except UserError:
        raise
    except Exception as error:  # array_record, protobuf and Pillow raise each their own on a broken copy
        raise _damaged(builder.data_dir, images.reason(error)) from error


def _smallest_head(records: Any) -> tuple[int, str]:
    """Pixels of the shorter side of the smallest head, and that in words. UserError: too few to show anything."""
    side, name = min(_each(records, preprocessing.head_side))
    said = f'{side} x {side} pixels, the shorter side of the head in {name}'
    if side < preprocessing.MIN_RESOLUTION:
        raise UserError(
            f'dataset.equalise would reduce all images to {said}; expected {preprocessing.MIN_RESOLUTION} or more. '
            'Leave that image out, or set config.dataset.equalise=False.'
        )
    return side, said


def _each(records: Any, function: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """A function of every record, in order, on all cores."""
    import grain

    options = grain.ReadOptions(num_threads=threads())
    return list(grain.MapDataset.source(records).map(function).to_iter_dataset(options))


def threads() -> int:
    """How many threads may decode images: as there are cores, and as have memory for the largest image each."""
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(machine.cores(), free // IMAGE_BYTES))


def _damaged(path: Path, what: str) -> UserError:
    if not os.access(path, os.R_OK | os.X_OK):
        return UserError(f'{path}: prepared copy of another user. Point TFDS_DATA_DIR to a folder of your own.')
    return UserError(f'{path}: prepared copy is damaged ({what}). Delete it and start again.')


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Files that are made meanwhile can be read by their owner alone."""
    mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(mask)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps the terminal to this project's own lines: tfds prints, draws bars and logs by itself."""
    import tensorflow_datasets as tfds

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)

