"""tfds builder of the head-CT images that Felipe Kitamura published on Kaggle: 100 normal, 100 hemorrhage."""

from etils import epath

from bhcnet_jax.datasets.folder import folder_dataset_builder
from bhcnet_jax.datasets.head_ct import layout


class Builder(folder_dataset_builder.Builder):
    """A labelled folder with another header, file names made from numbers, and a known content."""

    LAYOUT = layout.LAYOUT
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUT.how_to_get
    pkg_dir_path = epath.Path(__file__).parent
