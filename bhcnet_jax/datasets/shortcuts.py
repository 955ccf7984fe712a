"""How well one number of a file (its size, its format, its grey levels) tells the classes of a set apart."""

import math
from typing import Any

import numpy as np

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.statistics import metrics

BLACK, WHITE = 8, 247  # grey levels from which a pixel counts as black or white, with room for JPEG noise
GREY_MODES = ('1', 'L', 'LA', 'La', 'I', 'I;16', 'F')  # of Pillow


def shortcuts(image_set: ImageSet) -> list[dict[str, Any]]:
    """How well one number of a file tells the classes apart, the best first.

    Each: feature, auc, low, high (DeLong's 95 % interval, None where undefined), n, higher_in (the name of the class
    with the higher values, or '') and medians, in the negative and the positive class. The AUC has no direction,
    max(a, 1 - a): 0.5 is its least value, and chance alone lies somewhat above. Grey is that of the resized images.
    """
    labels = image_set.labels
    found = []
    for name, values in _features(image_set).items():
        auc, low, high = metrics.delong(labels, values)
        higher_in = image_set.class_names[1] if auc > 0.5 else ''
        if auc < 0.5:
            auc, low, high, higher_in = 1 - auc, 1 - high, 1 - low, image_set.class_names[0]
        found.append({
            'feature': name,
            'auc': _plain(auc),
            'low': _plain(low),
            'high': _plain(high),
            'n': len(labels),
            'higher_in': higher_in,
            'medians': [_median(values[labels == label]) for label in (0, 1)],
        })
    return sorted(found, key=lambda shortcut: -(shortcut['auc'] or 0))


def _features(image_set: ImageSet) -> dict[str, np.ndarray]:
    """float64 [N] each."""
    height, width = image_set.heights.astype(float), image_set.widths.astype(float)
    file_bytes = image_set.file_bytes.astype(float)
    grey = image_set.images.reshape(len(image_set.ids), -1)  # [N, H * W]
    return {
        'width, pixels': width,
        'height, pixels': height,
        'area, pixels': height * width,
        'aspect, width / height': width / height,
        'file size, bytes': file_bytes,
        'compression, bytes per pixel': file_bytes / (height * width),
        'alpha channel': np.array([mode.endswith(('A', 'a')) for mode in image_set.modes], float),
        'coloured pixels': image_set.coloured.astype(float),
        'colour mode': np.array([mode not in GREY_MODES for mode in image_set.modes], float),
        'mean grey': grey.mean(axis=1),
        'sd grey': grey.std(axis=1),
        'median grey': np.median(grey, axis=1),
        'share of black': (grey <= BLACK).mean(axis=1),
        'share of white': (grey >= WHITE).mean(axis=1),
    }


def _median(values: np.ndarray) -> float | None:
    return _plain(np.median(values)) if values.size else None


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
