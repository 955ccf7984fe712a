"""Many files through a model, a batch at a time: whatever their number, one batch of them is in memory."""

import concurrent.futures
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.folder import images, source
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference.model import BLOCK, Model


class Input(NamedTuple):
    """A file among others: its name as the user would write it, and where to read it."""

    name: str
    files: source.Files
    handle: str


class Prediction(NamedTuple):
    """What a model says of a file.

    Attributes:
      file: its name.
      probability: of the positive class, before calibration.
      calibrated: the same after it; None if the model is not calibrated.
      decision: the name of a class.
      abstained: why not to rely on the decision, see `Answers`; '' if there is no reason.
      spread: the standard deviation over members, nan for a single one.
      in_training_set: whether an image of the training set has the same pixels; None if that is not recorded.
    """

    file: str
    probability: float
    calibrated: float | None
    decision: str
    abstained: str
    spread: float
    in_training_set: bool | None


def find(paths: Iterable[pathlib.Path]) -> tuple[list[Input], list[UserError]]:
    """The images in files, folders and zips, and in zips that lie in folders; and what could not be opened.

    A file that is named is read whatever its name; in folders and zips the ending decides, and hidden files are left
    out. UserError: a path that does not exist.
    """
    left, found, broken = list(paths), [], []
    for path in left:
        if not path.exists():
            raise UserError(f'{path}: no such file or folder.')
    while left:
        path = left.pop(0)
        if path.is_file() and not _is_zip(path.name):
            found.append(Input(str(path), source.Files(path.parent, {path.name: path}, _open), path.name))
            continue
        try:
            files = source.listing(path)
        except UserError as error:
            broken.append(error)
            continue
        names = sorted(files.handles)
        found += [Input(f'{path}/{name}', files, name) for name in names if source.is_image(name)]
        left += [files.handles[name] for name in names if path.is_dir() and _is_zip(name)]
    return found, broken


def _is_zip(name: str) -> bool:
    return name.lower().endswith('.zip')


def _open(path: pathlib.Path) -> BinaryIO:
    return path.open('rb')


def score(model: Model, inputs: Sequence[Input]) -> Iterator[Prediction | UserError]:
    """The model's predictions in the order of the files; of a broken file its error."""
    with concurrent.futures.ThreadPoolExecutor(input_pipeline.threads()) as pool:
        for start in range(0, len(inputs), BLOCK):
            batch = inputs[start : start + BLOCK]
            yield from _score(model, batch, list(pool.map(functools.partial(_read, model), batch)))


def _read(model: Model, each: Input) -> tuple[np.ndarray, bool | None] | UserError:
    """A file as the model sees it, uint8 [S, S], and whether the training set has its pixels."""
    try:
        grey, _ = images.decode(each.files.read(each.handle, source.MAX_FILE_BYTES), each.name)
    except UserError as error:
        return error
    known = model.training_images
    return model.preprocess_grey(grey), None if known is None else input_pipeline.pixel_sha256(grey) in known


def _score(
    model: Model, batch: Sequence[Input], read: Sequence[tuple[np.ndarray, bool | None] | UserError]
) -> Iterator[Prediction | UserError]:
    intact = [each[0] for each in read if not isinstance(each, UserError)]
    answers = zip(*model.answer(np.stack(intact)), strict=True) if intact else iter(())
    for each, content in zip(batch, read, strict=True):
        if isinstance(content, UserError):
            yield content
        else:
            probability, spread, calibrated, positive, abstained = next(answers)
            yield Prediction(
                each.name,
                float(probability),
                None if np.isnan(calibrated) else float(calibrated),
                model.class_names[int(positive)],
                abstained,
                float(spread),
                content[1],
            )
