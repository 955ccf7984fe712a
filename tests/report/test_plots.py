"""What figures show can be read."""

import numpy as np

from bhcnet_jax.report import plots


def test_labels_stand_apart_and_move_no_further_than_they_need():
    heights = np.array([10.0, 50.0, 50.5, 51.0, 90.0])
    found = plots.apart(heights, 4.0)
    assert np.diff(found).min() >= 4 - 1e-9
    np.testing.assert_allclose(found, [10, 46.5, 50.5, 54.5, 90])
