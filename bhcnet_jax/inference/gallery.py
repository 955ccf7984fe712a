"""predictions.html: images as a network saw them, each beside its heat map, the most probably positive first."""

import base64
import io
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image
from scipy import ndimage

from bhcnet_jax import files
from bhcnet_jax.inference import saliency
from bhcnet_jax.inference.model import BLOCK, Model
from bhcnet_jax.inference.scoring import Prediction

END = 500  # images shown of either end of the order; a page of 1000 has 10 to 20 MB
IN_PLACE = ('file', 'probability')  # of a prediction, which have a place of their own on the page
ORANGE, YELLOW = np.array([255.0, 80.0, 0.0]), np.array([255.0, 240.0, 60.0])  # of little and of most evidence
BLUE = np.array([64, 220, 255], np.uint8)  # of contours
CONTOUR_AT = 0.5  # probability of blood
FINE = 256  # pixels of a side at least, of a picture with a contour
OPAQUE = 0.75  # share of the colour where there is most


class Shown(NamedTuple):
    """What the page shows of an image: its name, probability, further columns by name, and data URIs.

    contour: '' where no contour is known.
    """

    file: str
    probability: str
    columns: dict[str, str]
    image: str
    overlay: str
    contour: str


class Gallery:
    """Collects predictions and writes the page. It holds twice 2 END images at most, compressed, whatever their number.

    Attributes:
      count: images that were added.
    """

    def __init__(self, model: Model):
        self._model, self.count = model, 0
        self._kept: list[tuple[Prediction, bytes]] = []  # and the image's pixels, compressed

    def add(self, prediction: Prediction, image: np.ndarray) -> None:
        """image: what was predicted on, uint8 [S, S]."""
        self.count += 1
        self._kept.append((prediction, zlib.compress(image.tobytes())))
        if len(self._kept) > 4 * END:
            self._kept = self._ends()

    def _ends(self) -> list[tuple[Prediction, bytes]]:
        """The highest and the lowest, in order; equal ones as they came."""
        ordered = sorted(self._kept, key=lambda each: -each[0].probability)
        return ordered if len(ordered) <= 2 * END else ordered[:END] + ordered[-END:]

    def write(self, path: pathlib.Path, track: Callable[..., Iterator[Shown]]) -> None:
        """Computes the heat maps and writes the page. track: of a progress bar. UserError: it cannot be written."""
        kept = self._ends()
        how = saliency.methods(self._model.config)[0]
        shown = track(self._shown(kept, how), total=len(kept), description='heat maps')
        template = jinja2.Environment(
            loader=jinja2.PackageLoader('bhcnet_jax.inference', '.'), autoescape=True, trim_blocks=True,
            lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        ).get_template('predictions.html.j2')  # fmt: skip
        left_out = self.count - len(kept)
        parts = template.generate(
            model=self._model, how=saliency.NAMES[how], count=self.count, left_out=left_out, end=END, shown=shown,
            contour_at=CONTOUR_AT,
        )
        with files.output(path) as file:
            for part in parts:
                file.write(part.encode(errors='backslashreplace'))  # a file's name may have any bytes

    def _shown(self, kept: Sequence[tuple[Prediction, bytes]], how: str) -> Iterator[Shown]:
        for start in range(0, len(kept), BLOCK):
            part = kept[start : start + BLOCK]
            pixels = b''.join(zlib.decompress(compressed) for _, compressed in part)
            images = np.frombuffer(pixels, np.uint8).reshape(len(part), *2 * (self._model.image_size,))
            heats, blood = self._model.explain(images, how), self._segment(images)
            for (prediction, _), image, heat, share in zip(part, images, heats, blood, strict=True):
                further = {name: value for name, value in prediction._asdict().items() if name not in IN_PLACE}
                columns = {name.replace('_', ' '): text for name, value in further.items() if (text := _text(value))}
                uris = _uri(_png(image), 'png'), _uri(_jpeg(overlay(image, heat)), 'jpeg')
                uris += ('' if share is None else _uri(_jpeg(contour(image, share)), 'jpeg'),)
                yield Shown(prediction.file, _text(prediction.probability), columns, *uris)


    def _segment(self, images: np.ndarray) -> Sequence[np.ndarray | None]:
        return self._model.segment(images) if self._model.has_mask_head else [None] * len(images)


def contour(image: np.ndarray, blood: np.ndarray) -> np.ndarray:
    """An image, uint8 [S, S], enlarged, with a line around where `blood`, float [S, S], reaches CONTOUR_AT.

    -> uint8 [k S, k S, 3], k the least whole number that makes FINE pixels a side.
    """
    side = len(image) * -(-FINE // len(image))
    fine = np.asarray(Image.fromarray(blood.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
    shown = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).convert('RGB')).copy()
    inside = fine >= CONTOUR_AT
    shown[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = BLUE
    return shown


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image, uint8 [S, S], coloured by a heat map, float [S, S] in [0, 1] -> uint8 [S, S, 3]; 0 leaves it grey."""
    share = heat[..., None].astype(np.float64)
    colour = ORANGE + (YELLOW - ORANGE) * share
    return np.round(image[..., None] * (1 - OPAQUE * share) + colour * OPAQUE * share).astype(np.uint8)


def _text(value: Any) -> str:
    """A value of a prediction for readers; '' where there is none, as for the spread of a single network."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.3f}'
    return str(value)


def _png(image: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(image).save(written, 'PNG')
    return written.getvalue()


def _jpeg(image: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(image).save(written, 'JPEG', quality=85)
    return written.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
