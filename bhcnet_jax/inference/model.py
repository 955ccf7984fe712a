"""A trained network, or several as an ensemble, that can be applied to images.

M members, N images, S pixels a side.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from ml_collections import FrozenConfigDict
from PIL import Image
from scipy.special import expit, logit

from bhcnet_jax import models
from bhcnet_jax.datasets import preprocessing
from bhcnet_jax.datasets.ct import reader
from bhcnet_jax.datasets.ct.hounsfield import BRAIN
from bhcnet_jax.datasets.folder import images as files_of_images
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import calibration, saliency
from bhcnet_jax.inference.calibration import Calibration
from bhcnet_jax.inference.outliers import Outliers
from bhcnet_jax.plan import phases, written
from bhcnet_jax.training import steps

BLOCK = 64  # images that are computed at a time; a smaller rest is filled up to a power of 2, so that few sizes compile


PHANTOM, PHANTOM_TRAINED = 'PHANTOM', 'drawn heads (PHANTOM-TRAINED)'  # training sets that are synthetic
CONFORMAL, UNLIKE = 'conformal', 'unlike the training images'  # why a model abstains


class Answers(NamedTuple):
    """What a model says of N images.

    Attributes:
      probability: float64 [N], of the positive class, before calibration.
      spread: float64 [N], as of `Model.predict_with_spread`.
      calibrated: float64 [N]; nan if the model is not calibrated.
      positive: bool [N], the decision: at the calibration's threshold, else at 0.5.
      abstained: N reasons not to rely on the decision: UNLIKE, CONFORMAL, or ''.
    """

    probability: np.ndarray
    spread: np.ndarray
    calibrated: np.ndarray
    positive: np.ndarray
    abstained: list[str]


class Member(NamedTuple):
    """One trial of an ensemble."""

    trial_id: str
    seed: int
    fold: int


class Measured(NamedTuple):
    """What `python -m bhcnet_jax.evaluate` found of exactly these weights on an image set that they had not seen.

    Attributes:
      dataset, fingerprint: its name, and the digest of its files.
      images, positives: how many were scored, and how many of them are positive.
      auc, low, high: the area under the ROC curve, with its 95 % interval by a bootstrap of groups.
      looks: how often its images had been looked at, this time included.
    """

    dataset: str
    fingerprint: str
    images: int
    positives: int
    auc: float
    low: float
    high: float
    looks: int

    def __str__(self) -> str:
        auc = f'AUC {self.auc:.3f} ({self.low:.3f} to {self.high:.3f})'
        return f'{auc} on {self.dataset}, n = {self.images}, {self.positives} positive'


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The networks of one recipe; several are an ensemble, whose logit is the mean of theirs.

    Attributes:
      name: the recipe's label.
      recipe: what fixes the networks' results, without seed and fold; see `trial.resolve`.
      members: the trials that the networks are from.
      variables: what `steps.evaluate` takes, each array with a leading axis [M].
      dataset: the training set's name; PHANTOM where its images are synthetic.
      class_names: of labels 0 and 1.
      fingerprint: of the training set.
      resolution: of `preprocessing.preprocess`.
      training_images: `pixel_sha256` of all images of the training set, test parts included; None if not recorded.
      calibration: None if there were too few out-of-fold images for one.
      outliers: of the training set; None if nobody fitted them.
      measured: what was found on images from elsewhere; a run directory has none.
    """

    name: str
    recipe: Mapping[str, Any]
    members: tuple[Member, ...]
    variables: Mapping[str, Any]
    dataset: str
    class_names: tuple[str, str]
    fingerprint: str
    resolution: int
    training_images: frozenset[str] | None
    calibration: Calibration | None = None
    outliers: Outliers | None = None
    measured: tuple[Measured, ...] = ()

    @functools.cached_property
    def config(self) -> FrozenConfigDict:
        """The recipe as a config; what is not part of it is as in configs/base.py."""
        return FrozenConfigDict(written.complete(self.recipe))

    @property
    def image_size(self) -> int:
        """S."""
        return self.config.dataset.image_size

    @property
    def slices(self) -> int:
        """D of the volumes that the networks see; 1 if they see single images."""
        return self.config.dataset.slices

    def refuse_volumes(self, what: str) -> None:
        """UserError if the networks see volumes, for `what`, the start of a sentence, that takes single images."""
        if self.slices > 1:
            raise UserError(
                f'{what} takes networks that see single images; {self.name} sees volumes of {self.slices} slices. '
                'python -m bhcnet_jax.predict applies it to series of DICOM or NIfTI.'
            )

    @property
    def trained_on(self) -> str:
        """The training set's name; PHANTOM_TRAINED if all images that the networks ever saw were drawn for them."""
        return PHANTOM_TRAINED if phases.is_pretraining(self.recipe) else self.dataset

    @property
    def measured_text(self) -> str:
        """`measured` in words, '' for none."""
        return '; '.join(map(str, self.measured))

    @functools.cached_property
    def weights_sha256(self) -> str:
        """SHA-256, hex, over the name, dtype, shape and bytes of every array in `variables`."""
        found = hashlib.sha256()
        for name, leaf in sorted(traverse_util.flatten_dict(self.variables, sep='/').items()):
            found.update(f'{name} {leaf.dtype.str} {leaf.shape}'.encode() + np.ascontiguousarray(leaf).tobytes())
        return found.hexdigest()

    def preprocess(self, image: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
        """An image as the networks were trained on it: uint8 [S, S].

        image: the path of a file of a format of `images.FORMATS` or of a DICOM or NIfTI file with one CT slice, seen in
        the window BRAIN; or its greys, uint8 [H, W]. UserError: something else, or several slices.
        """
        if not isinstance(image, np.ndarray):
            try:
                data = pathlib.Path(image).read_bytes()
            except OSError as error:
                raise UserError(f'{image}: cannot be read ({error.strerror}).') from error
            return self.preprocess_grey(_one_grey(data, str(image)), str(image))
        if image.dtype != np.uint8 or image.ndim != 2 or not image.size:
            raise UserError(f'the image is {image.dtype} {list(image.shape)}, expected greys, uint8 [height, width].')
        return self.preprocess_grey(Image.fromarray(image))

    def preprocess_grey(self, grey: Image.Image, name: str = 'the image') -> np.ndarray:
        """The same for an image of Pillow's mode L. UserError, naming it: so small that it shows no head."""
        if min(grey.size) < preprocessing.MIN_RESOLUTION:
            raise UserError(
                f'{name}: {grey.width} x {grey.height} pixels, expected at least {preprocessing.MIN_RESOLUTION} each '
                'way. Leave it out.'
            )
        return preprocessing.preprocess(grey, self.image_size, self.resolution)

    def member_logits(self, images: np.ndarray) -> np.ndarray:
        """Each network's logits, float64 [M, N], of images uint8 [N, S, S], or of volumes [N, D, S, S] with D `slices`.

        UserError: other images.
        """
        found = [
            np.asarray(self._apply(self._on_device, block), np.float64)[:, :count]
            for block, count in self._blocks(images)
        ]
        return np.concatenate([np.zeros((len(self.members), 0)), *found], axis=1)

    def _blocks(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Checked images in parts of few sizes, and how many of each part are not filling. UserError: others."""
        images, shape = np.asarray(images), models.input_shape(self.image_size, self.slices)[:-1]
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f'the images are {images.dtype} {list(images.shape)}, expected uint8 [N, {str(shape)[1:-1]}]. '
                f'model.preprocess makes each {"slice" if self.slices > 1 else "of them"}.'
            )
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            filling = (1 << (len(block) - 1).bit_length()) - len(block)
            yield np.pad(block, ((0, filling), *len(shape) * ((0, 0),))), len(block)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    @functools.cached_property
    def _apply(self) -> Any:
        @jax.jit
        def apply(variables: Any, images: jax.Array) -> jax.Array:
            scored = jnp.arange(len(images))
            return lax.map(lambda member: steps.evaluate(self.config, member, scored, images), variables)

        return apply

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Log-odds of the positive class, the mean over members, float64 [N]. Arguments as of `member_logits`."""
        return self.member_logits(images).mean(axis=0)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities of the positive class, float64 [N] in [0, 1]. Arguments as of `member_logits`."""
        return expit(self.logits(images))

    def predict_with_spread(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `predict`, and the standard deviation of the members' own probabilities, float64 [N]; nan if M is 1."""
        logits = self.member_logits(images)
        alone = len(self.members) == 1
        spread = np.full(logits.shape[1], np.nan) if alone else expit(logits).std(axis=0, ddof=1)
        return expit(logits.mean(axis=0)), spread

    def answer(self, images: np.ndarray) -> Answers:
        """Probabilities, decisions and when not to rely on them. Arguments as of `member_logits`."""
        probability, spread = self.predict_with_spread(images)
        calibrated, positive = np.full(len(probability), np.nan), probability >= calibration.THRESHOLD
        abstained = np.full(len(probability), '', object)
        if self.calibration is not None:
            calibrated = self.calibration.probabilities(logit(probability))
            positive = self.calibration.decide(calibrated)
            abstained[~self.calibration.answers(calibrated)] = CONFORMAL
        if self.outliers is not None:
            abstained[self.outliers.flags(np.asarray(images))] = UNLIKE
        return Answers(probability, spread, calibrated, positive, abstained.tolist())

    def explain(self, images: np.ndarray, how: str = 'hires_cam') -> np.ndarray:
        """Heat maps of the evidence for the positive class, float32 [N, S, S] in [0, 1]; see `saliency.explain`.

        1 is where an image has most of it, however little that is; a map says nothing of how probable the class is.
        images: as of `member_logits`. how: hires_cam, grad_cam, integrated_gradients, which takes 32 times as long,
        occlusion, which takes hundreds of predictions, or mask, which needs a mask head. UserError: other images,
        another way, or one that the model does not have.
        """
        self.refuse_volumes('A heat map')
        found = [
            saliency.explain(self.config, self._on_device, block, how)[:count] for block, count in self._blocks(images)
        ]
        return np.concatenate([np.zeros((0, self.image_size, self.image_size), np.float32), *found])


    def segment(self, images: np.ndarray) -> np.ndarray:
        """The probability of blood in each pixel as the mask head learnt it from drawn heads, float32 [N, S, S].

        From the mean logit of the members. Their maps are coarser than the image and are interpolated. images: as of
        `member_logits`. UserError: other images, or a network without a mask head.
        """
        self.refuse_volumes('A segmentation')
        if not self.has_mask_head:
            raise UserError(
                f'{self.name}: its networks have no mask head; expected model.mask_head=True and the phase phantom, as '
                'in --config=pretrained.'
            )
        found = [
            saliency.segment(self.config, self._on_device, block)[:count] for block, count in self._blocks(images)
        ]
        return np.concatenate([np.zeros((0, self.image_size, self.image_size), np.float32), *found])

    @property
    def has_mask_head(self) -> bool:
        """Whether the networks tell where blood is."""
        return bool(self.config.model.mask_head)


def _one_grey(data: bytes, name: str) -> Image.Image:
    kind = reader.kind(name, data[: reader.START], named=True)
    if not kind:
        return files_of_images.decode(data, name)[0]
    greys = list(itertools.islice(reader.greys(data, name, kind, BRAIN), 2))
    if len(greys) > 1:
        raise UserError(f'{name}: several slices, expected one. python -m bhcnet_jax.predict takes them all.')
    return greys[0]
