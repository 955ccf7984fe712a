"""tfds builder of any labelled folder: images with a labels.csv, or in a folder for each class."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bhcnet_jax.datasets.folder import source, table


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A checked set; its fingerprint is the config's name and so the folder of the prepared copy."""

    labelled: source.LabelledSet | None = dataclasses.field(default=None, repr=False)


# What is prepared of an image: its grey pixels and what `images.read` says of the published file, whose metadata may
# name a patient.
FEATURES = {
    'image': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),  # read it with SkipDecoding
    'id': tfds.features.Text(),
    'group': tfds.features.Text(),
    'mode': tfds.features.Text(),
    'coloured': np.bool_,
    'bits': np.int32,
    'file_bytes': np.int64,
    'file_sha256': tfds.features.Text(),
}


class Builder(tfds.core.ShardBasedBuilder):
    """Grey images in the set's order, in one split.

    A shard is written as it is read: tfds' generator-based builders hold the whole set in memory, and beyond
    1000 MiB need TensorFlow.
    """

    VERSION = tfds.core.Version('2.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        '2.0.0': 'Grey pixels and numbers of the published file in place of the file.',
        '1.0.0': 'First version.',
    }
    LAYOUT = source.Layout()
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.how_to_get
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, *, file_format: str = 'array_record', **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                FEATURES | {'label': tfds.features.ClassLabel(names=self.LAYOUT.class_names or table.NUMBERED)}
            ),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        labelled = self.builder_config.labelled if self.builder_config else self._read_manual_dir(dl_manager)
        return {'train': [lambda: enumerate(labelled.records())]}

    def _read_manual_dir(self, dl_manager: tfds.download.DownloadManager) -> source.LabelledSet:
        return source.read(source.find(Path(dl_manager.manual_dir)), self.LAYOUT)
