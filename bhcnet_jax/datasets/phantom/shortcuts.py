"""How well the classes can be told apart without looking at where anything is.

    python -m bhcnet_jax.datasets.phantom.shortcuts
"""

from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bhcnet_jax.datasets.phantom import drawing, heads
from bhcnet_jax.errors import Parser

NUM_HEADS, BATCH, SIZE = 4000, 100, 128


def shortcut_aucs(images: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Cross-validated AUC of classifiers that see grey statistics or the image size only.

    images: N arrays uint8 [H, W]; labels: int [N], 0 or 1. Grey statistics are taken at 128 x 128 pixels.
    -> by name, float [10]: the AUC on each fold of twice repeated, stratified 5-fold cross-validation.
    """
    small = [
        np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR)) for image in images
    ]
    mean = np.array([[image.mean()] for image in small])
    histogram = np.array([np.histogram(image, bins=32, range=(0, 256))[0] / image.size for image in small])
    size = np.array([image.shape for image in images], np.float64)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    forest = RandomForestClassifier(100, random_state=0)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=0)
    return {
        name: cross_val_score(model, features, labels, cv=folds, scoring='roc_auc')
        for name, features, model in (
            ('mean grey, logistic regression', mean, logistic),
            ('32-bin histogram, logistic regression', histogram, logistic),
            ('32-bin histogram, random forest', histogram, forest),
            ('height and width, logistic regression', size, logistic),
        )
    }


def draw_heads(seed: int, count: int, size: int = SIZE) -> tuple[list[np.ndarray], np.ndarray]:
    """`count` slices of `heads`, a multiple of BATCH -> images uint8 [SIZE, SIZE], labels int [count]."""
    draw = jax.jit(jax.vmap(lambda key: heads.draw(key, size)))
    keys = jax.random.split(jax.random.key(seed), (count // BATCH, BATCH))
    batches = [draw(each) for each in keys]
    images = [image for batch in batches for image in np.asarray(batch.image)]
    return images, np.concatenate([np.asarray(batch.label) for batch in batches])


def main() -> None:
    """The command line: prints the AUC of each shortcut on the phantom and on drawn heads."""
    Parser(
        prog='python -m bhcnet_jax.datasets.phantom.shortcuts',
        description=__doc__.splitlines()[0],
        epilog=f'It draws {drawing.NUM_SLICES} slices of the phantom and {NUM_HEADS} heads.',
    ).parse_args()
    slices = list(drawing.draw_set())
    labels = np.array([int(drawn.kind != '') for drawn in slices])
    _report(f'PHANTOM, seed {drawing.SEED}', [drawn.image for drawn in slices], labels)
    _report(f'PHANTOM heads, seed {drawing.SEED}, {SIZE} pixels', *draw_heads(drawing.SEED, NUM_HEADS))


def _report(title: str, images: Sequence[np.ndarray], labels: np.ndarray) -> None:
    print(f'{title}, n = {len(labels)} ({labels.sum()} hemorrhage): AUC, mean and range')
    for name, aucs in shortcut_aucs(images, labels).items():
        print(f'{name:40s} {aucs.mean():.3f}  ({aucs.min():.3f}-{aucs.max():.3f})')


if __name__ == '__main__':
    main()
