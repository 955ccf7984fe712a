"""Many files through a model, a batch at a time: whatever their number, one batch of them is in memory."""

import concurrent.futures
import functools
import itertools
import math
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bhcnet_jax.datasets import input_pipeline, preprocessing
from bhcnet_jax.datasets.ct import hounsfield, reader
from bhcnet_jax.datasets.ct.hounsfield import Header, Window
from bhcnet_jax.datasets.folder import images, source
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference.model import BLOCK, Model

MIN_SLICES = 4  # of a series that is seen as a whole; fewer show no head


class Input(NamedTuple):
    """A file among others: its name as the user would write it, and where to read it.

    Attributes:
      kind: of `reader.kind`; '' for an image.
      slices: how many it holds, 1 for an image.
      series: the number of its series among all, from 1; None for an image.
      first_slice: the place of its lowest slice in its series, from 1.
      series_number, instance_number: those of DICOM, None where there are none.
    """

    name: str
    files: source.Files
    handle: str
    kind: str = ''
    slices: int = 1
    series: int | None = None
    first_slice: int = 1
    series_number: int | None = None
    instance_number: int | None = None


class Prediction(NamedTuple):
    """What a model says of an image or a slice.

    Attributes:
      file: its name.
      probability: of the positive class, before calibration.
      calibrated: the same after it; None if the model is not calibrated.
      decision: the name of a class.
      abstained: why not to rely on the decision, see `Answers`; '' if there is no reason.
      spread: the standard deviation over members, nan for a single one.
      in_training_set: whether an image of the training set has the same pixels; None if that is not recorded.
      series, series_number, instance_number: as of Input.
      slice: its place in the series, from 1 at the feet; None for an image, and for a series that is seen as a whole.
    """

    file: str
    probability: float
    calibrated: float | None
    decision: str
    abstained: str
    spread: float
    in_training_set: bool | None
    series: int | None
    slice: int | None
    series_number: int | None
    instance_number: int | None


class Scored(NamedTuple):
    """A prediction, the image as the model saw it, uint8 [S, S] or [D, S, S], and how many slices it is of."""

    prediction: Prediction
    pixels: np.ndarray
    slices: int = 1


class Series(NamedTuple):
    """What a model says of the slices of one series.

    Attributes:
      series, series_number: as of Input.
      first_file: the file of its lowest slice that was read.
      slices: how many were read.
      largest: probability among them; of networks that see volumes, that of the whole.
      mean_of_three_largest: probabilities; of fewer where there are fewer.
    """

    series: int
    series_number: int | None
    first_file: str
    slices: int
    largest: float
    mean_of_three_largest: float


def find(paths: Iterable[pathlib.Path]) -> tuple[list[Input], list[UserError]]:
    """The images and CT slices in files, folders and zips, and in zips that lie in folders; and what cannot be read.

    A file that is named is read whatever its name. In folders and zips an image is told by its ending, a file of CT
    slices by `reader.kind`, and hidden files are left out. A series stands where its first file does, its slices from
    the feet to the head. UserError: a path that does not exist.
    """
    paths, found, broken = list(paths), [], []
    for path in paths:
        if not path.exists():
            raise UserError(f'{path}: no such file or folder.')
    for path in paths:  # zips that lie in folders join them
        try:
            listed = list(_listed(path))
        except UserError as error:
            broken.append(error)
            continue
        for each in listed:
            if path.is_dir() and _is_zip(each.handle):
                paths.append(each.files.handles[each.handle])
                continue
            try:
                kind = reader.kind(each.handle, _start(each), named=each.name == str(path))
            except UserError as error:
                broken.append(error)
                continue
            if kind or source.is_image(each.handle) or each.name == str(path):
                found.append(each._replace(kind=kind))
    ordered, unread = _in_series(found)
    return ordered, broken + unread


def _listed(path: pathlib.Path) -> Iterator[Input]:
    """All files of a folder or a zip, or the file itself. UserError: unreadable."""
    if path.is_file() and not _is_zip(path.name):
        yield Input(str(path), source.Files(path.parent, {path.name: path}, _open), path.name)
        return
    files = source.listing(path)
    for name in sorted(files.handles):
        yield Input(f'{path}/{name}', files, name)


def _is_zip(name: str) -> bool:
    return name.lower().endswith('.zip')


def _open(path: pathlib.Path) -> BinaryIO:
    return path.open('rb')


def _start(each: Input) -> bytes:
    try:
        with each.files.open(each.files.handles[each.handle]) as stream:
            return stream.read(reader.START)
    except Exception as error:  # zipfile and its decompressors raise nearly anything on damaged input
        raise UserError(f'{each.name}: cannot be read ({images.reason(error)}). Check its permissions.') from error


def _in_series(found: Sequence[Input]) -> tuple[list[Input], list[UserError]]:
    """The files of CT slices put in order, series by series; and those that hold none, or are damaged."""
    readers, broken = _readers({each.kind for each in found if each.kind})
    together: dict[object, list[tuple[Input, Header | None]]] = {}
    for each in found:
        if each.kind and each.kind not in readers:
            continue
        try:
            header = readers[each.kind].header(_bytes(each), each.name) if each.kind else None
        except UserError as error:
            broken.append(error)
            continue
        key = header.series if header and header.series else object()
        together.setdefault(key, []).append((each, header))
    ordered, number = [], 0
    for members in together.values():
        if members[0][1] is None:
            ordered.append(members[0][0])
            continue
        number += 1
        ordered += _in_order(members, number)
    return ordered, broken


def _readers(kinds: set[str]) -> tuple[dict[str, reader.Reader], list[UserError]]:
    """Those whose libraries are installed, and one error for each of the others, however many files need it."""
    readers, missing = {}, []
    for kind in sorted(kinds):
        try:
            readers[kind] = reader.reader(kind)
        except UserError as error:
            missing.append(error)
    return readers, missing


def _in_order(members: Sequence[tuple[Input, Header]], series: int) -> Iterator[Input]:
    """Files of one series from the feet to the head; where a position is unknown, by instance number."""

    def place(member: tuple[Input, Header]) -> tuple[float, float]:
        header = member[1]
        return tuple(math.inf if key is None else key for key in (header.position, header.instance_number))

    first = 1
    for each, header in sorted(members, key=place):
        yield each._replace(
            slices=header.slices, series=series, first_slice=first,
            series_number=header.series_number, instance_number=header.instance_number,
        )  # fmt: skip
        first += header.slices


def _bytes(each: Input) -> bytes:
    return each.files.read(each.handle, hounsfield.MAX_BYTES if each.kind else source.MAX_FILE_BYTES)


def score(model: Model, inputs: Sequence[Input], window: Window = hounsfield.BRAIN) -> Iterator[Scored | UserError]:
    """The model's predictions in the order of the files; of a broken file its error.

    window: of CT slices. Of networks that see volumes, a prediction for each series, in which broken files are missing.
    """
    if model.slices > 1:
        yield from _score_series(model, inputs, window)
        return
    with concurrent.futures.ThreadPoolExecutor(input_pipeline.threads()) as pool:
        for batch in _batches(inputs):
            with warnings.catch_warnings():  # around all threads: within one it would end for the others
                warnings.simplefilter('ignore')
                read = list(pool.map(functools.partial(_read, model, window), batch))
            yield from _score(model, batch, read)


def _batches(inputs: Sequence[Input]) -> Iterator[list[Input]]:
    """Files of at most BLOCK slices together, or one file of more."""
    batch: list[Input] = []
    for each in inputs:
        if batch and sum(other.slices for other in batch) + each.slices > BLOCK:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _read(model: Model, window: Window, each: Input) -> list[tuple[np.ndarray, bool | None]] | UserError:
    """A file's images as the model sees them, uint8 [S, S], and whether the training set has their pixels."""
    known = model.training_images
    try:
        data = _bytes(each)
        greys = (
            reader.greys(data, each.name, each.kind, window) if each.kind else [images.decode(data, each.name)[0]]
        )
        return [
            (
                model.preprocess_grey(grey, each.name),
                None if known is None else preprocessing.pixel_sha256(grey) in known,
            )
            for grey in greys
        ]
    except UserError as error:
        return error


def _score(
    model: Model, batch: Sequence[Input], read: Sequence[list[tuple[np.ndarray, bool | None]] | UserError]
) -> Iterator[Scored | UserError]:
    intact = [pixels for seen in read if not isinstance(seen, UserError) for pixels, _ in seen]
    answers = zip(*model.answer(np.stack(intact)), strict=True) if intact else iter(())
    for each, seen in zip(batch, read, strict=True):
        if isinstance(seen, UserError):
            yield seen
            continue
        for place, (pixels, in_training_set) in enumerate(seen, each.first_slice):
            prediction = _prediction(model, each, next(answers), in_training_set, place if each.series else None)
            yield Scored(prediction, pixels)


def _prediction(
    model: Model, each: Input, answer: tuple[Any, ...], in_training_set: bool | None, place: int | None
) -> Prediction:
    """answer: one of `Answers`. place: of the slice in its series."""
    probability, spread, calibrated, positive, abstained = answer
    return Prediction(
        each.name, float(probability), None if np.isnan(calibrated) else float(calibrated),
        model.class_names[int(positive)], abstained, float(spread), in_training_set,
        each.series, place, each.series_number, each.instance_number,
    )  # fmt: skip


def _score_series(model: Model, inputs: Sequence[Input], window: Window) -> Iterator[Scored | UserError]:
    """One series in memory at a time."""
    for series, members in itertools.groupby(inputs, key=lambda each: each.series):
        intact = []
        for each in members:
            read = _alone(model, each) if series is None else _read(model, window, each)
            if isinstance(read, UserError):
                yield read
            else:
                intact += [(each, pixels) for pixels, _ in read]
        if series is None or not intact:
            continue
        first, slices = intact[0][0], np.stack([pixels for _, pixels in intact])
        if len(slices) < MIN_SLICES:
            yield UserError(
                f'{first.name}: a series of {len(slices)}, expected {MIN_SLICES} or more slices from the neck to '
                'the vertex. Give all of its files.'
            )
            continue
        volume, known = resample(slices, model.slices), model.training_images
        in_training_set = None if known is None else preprocessing.volume_sha256(volume) in known
        answer = next(zip(*model.answer(volume[None]), strict=True))
        prediction = _prediction(model, first, answer, in_training_set, None)
        yield Scored(prediction, volume, len(slices))


def _alone(model: Model, each: Input) -> UserError:
    return UserError(
        f'{each.name}: a single image, but {model.name} sees volumes; expected series of DICOM or NIfTI. Leave it out.'
    )


def resample(slices: np.ndarray, count: int) -> np.ndarray:
    """Slices uint8 [K, S, S] -> [count, S, S] over the same length, the first and the last where they were.

    Between slices greys are linear; of more slices than `count`, each is a mean of its neighbours with the weights of a
    triangle, as Pillow's bilinear filter.
    """
    apart = (len(slices) - 1) / (count - 1)  # slices between two of the new ones
    places = apart * np.arange(count)
    weights = np.maximum(1 - np.abs(np.arange(len(slices)) - places[:, None]) / max(apart, 1.0), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.round(np.tensordot(weights, slices, axes=1)).astype(np.uint8)


class SeriesResults:
    """Gathers predictions into what they say of each series; of a series it keeps the three largest."""

    def __init__(self) -> None:
        self._series: dict[int, Series] = {}
        self._largest: dict[int, list[float]] = {}

    def add(self, each: Prediction, slices: int = 1) -> None:
        """Leaves out what belongs to no series. slices: that the prediction is of."""
        if each.series is None:
            return
        largest = self._largest[each.series] = sorted((*self._largest.get(each.series, ()), each.probability))[-3:]
        before = self._series.get(each.series)
        self._series[each.series] = Series(
            each.series, each.series_number, before.first_file if before else each.file,
            before.slices + slices if before else slices, largest[-1], sum(largest) / len(largest),
        )  # fmt: skip

    def all(self) -> list[Series]:
        """By number."""
        return [self._series[number] for number in sorted(self._series)]
