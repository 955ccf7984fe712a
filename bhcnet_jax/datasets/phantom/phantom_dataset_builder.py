"""tfds builder of the synthetic set: 200 drawn head-CT slices, 100 normal and 100 with a hemorrhage."""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from bhcnet_jax.datasets.folder import images
from bhcnet_jax.datasets.folder.folder_dataset_builder import FEATURES
from bhcnet_jax.datasets.head_ct.layout import LAYOUT
from bhcnet_jax.datasets.phantom import drawing


class Builder(tfds.core.GeneratorBasedBuilder):
    """The set of drawing.SEED in one split, in the order of its ids; nothing is downloaded."""

    VERSION = tfds.core.Version('2.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        '2.0.0': 'Fields of any labelled folder.',
        '1.0.0': 'First version.',
    }
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, *, file_format: str = 'array_record', **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                FEATURES
                | {
                    'mask': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=LAYOUT.class_names),
                }
            ),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {'train': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, drawn in enumerate(drawing.draw_set()):
            yield index, {
                **images.read(_png(drawn.image), drawn.id),
                'mask': _png(drawn.mask),
                'label': int(drawn.kind != ''),
                'id': drawn.id,
                'group': '',
            }


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] -> PNG; tfds' own encoder would need TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()
