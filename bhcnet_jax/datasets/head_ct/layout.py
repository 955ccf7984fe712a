"""What the head-CT set looks like that Felipe Kitamura published on Kaggle: 100 normal, 100 hemorrhage."""

from pathlib import PurePosixPath

from bhcnet_jax.datasets.folder import source

LAYOUT = source.Layout(
    header=('id', 'hemorrhage'),
    file_name=lambda number: f'{number.zfill(3)}.png',
    image_id=lambda path: PurePosixPath(path).stem,
    image_format='PNG',
    class_names=('normal', 'hemorrhage'),
    class_counts=(100, 100),
    published='6b93e0a7808bd2ff503025cb1013e1582b53cb4eda4bf841a95c3f1ea62047fb',
    name='head_ct',
    how_to_get=(
        'Download https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage and name the zip, or the '
        'folder that it unpacks to, by config.dataset.dir or HEAD_CT_DIR, or put it in the manual folder.'
    ),
)
