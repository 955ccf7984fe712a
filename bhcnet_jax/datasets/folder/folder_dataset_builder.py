"""tfds builder of any labelled folder: a labels.csv of `file,label[,group]` and the images that it names."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from bhcnet_jax.datasets.folder import source


@dataclasses.dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A checked set; its fingerprint is the config's name and so the folder of the prepared copy."""

    labelled: source.LabelledSet | None = dataclasses.field(default=None, repr=False)


class Builder(tfds.core.ShardBasedBuilder):
    """Images as published, in the csv's order, in one split.

    A shard is written as it is read: tfds' generator-based builders hold the whole set in memory, and beyond
    1000 MiB need TensorFlow.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Expected a folder or zip with labels.csv (file,label[,group]) and images.'
    CLASSES = ('negative', 'positive')
    LAYOUT = source.Layout(header=('file', 'label'), file_name=str)
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, *, file_format: str = 'array_record', **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(None, None, None)),  # read it with SkipDecoding
                'label': tfds.features.ClassLabel(names=self.CLASSES),
                'id': tfds.features.Text(),
                'group': tfds.features.Text(),
            }),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        labelled = self.builder_config.labelled if self.builder_config else self._read_manual_dir(dl_manager)
        return {'train': [lambda: enumerate(labelled.examples())]}

    def _read_manual_dir(self, dl_manager: tfds.download.DownloadManager) -> source.LabelledSet:
        return source.read(source.find(Path(dl_manager.manual_dir)), self.LAYOUT)
