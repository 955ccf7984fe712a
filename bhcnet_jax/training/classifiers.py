"""The baselines: numbers taken from an image, and the classifiers of scikit-learn that see them.

N images, F numbers of an image.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.plan.splits import Split

SIDE = 64  # pixels, height and width of the images that a baseline sees whole
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of an image's grey levels
CALIBRATION_FOLDS = 5
PIXELS = f'{SIDE} x {SIDE} pixels'


class Method(NamedTuple):
    """A classifier of scikit-learn.

    settings: its keyword arguments. scaled: its inputs are standardised to mean 0 and standard deviation 1.
    seeded: it is random. calibrated: it gives scores, which a sigmoid turns into probabilities.
    """

    classifier: type[ClassifierMixin]
    settings: Mapping[str, Any]
    scaled: bool = False
    seeded: bool = False
    calibrated: bool = False


METHODS = {  # settings are scikit-learn's defaults, written out
    'random forest': Method(RandomForestClassifier, {'n_estimators': 100}, seeded=True),
    'k-nearest neighbours': Method(KNeighborsClassifier, {'n_neighbors': 5}, scaled=True),
    'linear SVM': Method(SVC, {'kernel': 'linear', 'C': 1.0}, scaled=True, calibrated=True),
    'RBF SVM': Method(SVC, {'kernel': 'rbf', 'C': 1.0, 'gamma': 'scale'}, scaled=True, calibrated=True),
    'AdaBoost': Method(AdaBoostClassifier, {'n_estimators': 50}, seeded=True),
    'Gaussian naive Bayes': Method(GaussianNB, {}),
}


class Baseline(NamedTuple):
    """method: a key of METHODS. inputs: a key of the dict that `inputs` returns."""

    method: str
    inputs: str

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f'{self.method} on {self.inputs}'


def features_of(network: str) -> str:
    """What the inputs are called that are features of a recipe's networks."""
    return f'features of {network}'


SHORTCUTS = ('width and height', 'file size', 'grey levels', 'all shortcuts')
BASELINES = (
    *(Baseline('random forest', name) for name in SHORTCUTS),
    *(Baseline(method, PIXELS) for method in METHODS),
)


def inputs(image_set: ImageSet) -> dict[str, np.ndarray]:
    """The inputs of the baselines, by name: float32 [N, F] each.

    Grey levels are the mean, the standard deviation and QUANTILES of all pixels of the image at 128 x 128 pixels.
    """
    grey = image_set.thumbnails.reshape(len(image_set.ids), -1)
    size = np.stack([image_set.widths, image_set.heights], axis=1)
    levels = np.stack([grey.mean(axis=1), grey.std(axis=1), *np.quantile(grey, QUANTILES, axis=1)], axis=1)
    file_size = image_set.file_bytes[:, None]
    shortcuts = (size, file_size, levels, np.concatenate([size, file_size, levels], axis=1))
    pixels = image_set.images.reshape(len(image_set.ids), -1) / 255
    found = {**dict(zip(SHORTCUTS, shortcuts, strict=True)), PIXELS: pixels}
    return {name: values.astype(np.float32) for name, values in found.items()}


def predict(method: Method, values: np.ndarray, labels: np.ndarray, split: Split, seed: int) -> np.ndarray:
    """Fits on the training part of a split. -> probability of the positive class, float64 [len(split.test)].

    values: float [N, F]. labels: int [N]. The sigmoid is fitted to scores from a cross-validation inside the training
    part (Platt, 1999).
    """
    chance = {'random_state': seed} if method.seeded else {}
    model = method.classifier(**method.settings, **chance)
    if method.scaled:
        model = make_pipeline(StandardScaler(), model)
    if method.calibrated:
        model = CalibratedClassifierCV(model, method='sigmoid', cv=CALIBRATION_FOLDS, ensemble=False)
    model.fit(values[split.train], labels[split.train])
    return np.clip(model.predict_proba(values[split.test])[:, 1], 0, 1)  # rounding may leave 1 + 2e-16
