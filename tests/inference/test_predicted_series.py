"""Networks that see volumes, applied to series: one row for each, whatever the format and the number of slices."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bhcnet_jax import predict
from bhcnet_jax.datasets.ct.hounsfield import BRAIN, grey_levels
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import formats, scoring
from bhcnet_jax.inference.model import Member, Model
from bhcnet_jax.plan import trial
from lanes import random_variables, small_config

nibabel = pytest.importorskip('nibabel')
pytest.importorskip('pydicom')


@pytest.fixture(scope='module')
def model():
    """An untrained cnn3d of volumes of 6 slices."""
    config = small_config(
        model__name='cnn3d', dataset__name='phantom', dataset__slices=6, phases=('phantom',), augment__policy='none',
    )  # fmt: skip
    variables = random_variables(config)
    return Model(
        name='volumes', recipe=trial.resolve(config), members=(Member('a', 0, 0),), variables=stacked(variables),
        dataset='PHANTOM', class_names=('normal', 'hemorrhage'), fingerprint='', resolution=0,
        training_images=frozenset(),
    )  # fmt: skip


def stacked(tree):
    return {name: stacked(part) if isinstance(part, dict) else part[None] for name, part in tree.items()}


@pytest.fixture(scope='module')
def stack(head_hu):
    """Nine different slices in HU, [9, H, W], from the feet."""
    return np.stack([np.clip(np.roll(head_hu[::3, ::3], 4 * number) + 9 * number, -1024, None) for number in range(9)])


def by_hand(model, stack):
    """The probability of a series of 2 D - 1 or D slices: every second one is the mean of itself and its neighbours."""
    seen = np.stack([model.preprocess(grey_levels(each.astype(np.float32), BRAIN)) for each in stack]).astype(float)
    if len(seen) == 2 * model.slices - 1:
        padded = np.concatenate([seen[:1], seen, seen[-1:]])
        weights = np.ones(len(seen) + 2)
        weights[[0, -1]] = 0
        sums = weights[:-2, None, None] * padded[:-2] / 2 + padded[1:-1] + weights[2:, None, None] * padded[2:] / 2
        seen = (sums / (weights[:-2] / 2 + 1 + weights[2:] / 2)[:, None, None])[::2]
    return model.predict(np.round(seen).astype(np.uint8)[None])[0]


def write_dicom(folder, dicom, stack, uid='1.2.3'):
    folder.mkdir(parents=True)
    for place, hu in enumerate(stack):
        data = dicom(hu, InstanceNumber=90 - place, SeriesInstanceUID=uid, ImagePositionPatient=[0, 0, 5 * place])
        (folder / f'IM{(5 * place) % 11}').write_bytes(data)  # in no order


def test_a_series_is_one_row_whatever_its_format_and_number_of_slices(model, dicom, stack, tmp_path):
    stack = np.concatenate([stack, stack[:2] + 40])
    write_dicom(tmp_path / 'in/a', dicom, stack)
    write_dicom(tmp_path / 'in/b', dicom, stack[:6], uid='1.2.4')
    volume = nibabel.Nifti1Image(stack.transpose(2, 1, 0).astype(np.int16), np.diag([-0.5, -0.5, 5, 1]))
    (tmp_path / 'in/c.nii').write_bytes(volume.to_bytes())
    assert predict.predict(model, [tmp_path / 'in'], tmp_path / 'out') == (3, 0, 0)
    found, series = (pd.read_csv(tmp_path / f'out/{name}.csv') for name in ('predictions', 'series'))
    of_all, of_six = by_hand(model, stack), by_hand(model, stack[:6])
    assert abs(of_all - of_six) > 1e-3  # so that they cannot be taken for each other
    np.testing.assert_allclose(found.probability, [of_all, of_six, of_all], atol=1e-6)
    assert series.slices.tolist() == [11, 6, 11] and found.series.tolist() == series.series.tolist() == [1, 2, 3]
    assert series.largest.tolist() == series.mean_of_three_largest.tolist() == found.probability.tolist()
    assert found.slice.isna().all() and set(found.trained_on) == {'drawn heads (PHANTOM-TRAINED)'}
    assert found.file[0] == series.first_file[0] == f'{tmp_path}/in/a/IM0'
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['series']) == 3
    assert not (tmp_path / 'out/predictions.html').exists()


def test_a_broken_slice_and_a_lone_image_are_told_and_the_rest_is_predicted(model, dicom, stack, tmp_path, capsys):
    write_dicom(tmp_path / 'in/a', dicom, stack[:7])
    broken = tmp_path / 'in/a/IM0'
    broken.write_bytes(broken.read_bytes()[:-100])
    write_dicom(tmp_path / 'in/b', dicom, stack[:3], uid='1.2.4')
    Image.new('L', (40, 40)).save(tmp_path / 'in/lone.png')
    assert predict.predict(model, [tmp_path / 'in'], tmp_path / 'out') == (1, 3, 0)
    said = capsys.readouterr().err
    assert 'lone.png: a single image, but volumes sees volumes; expected series of DICOM or NIfTI' in said
    assert 'a series of 3, expected 4 or more slices' in said and 'in/a/IM0: ' in said
    series = pd.read_csv(tmp_path / 'out/series.csv')
    assert series.slices.tolist() == [6]
    assert series.largest[0] == pytest.approx(by_hand(model, stack[1:7]), abs=1e-6)


def test_resampling_keeps_the_ends_and_is_linear_between():
    ramp = np.arange(0, 200, 20, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)  # 10 slices
    np.testing.assert_array_equal(scoring.resample(ramp, 10), ramp)
    np.testing.assert_array_equal(scoring.resample(ramp, 19)[:, 0, 0], np.arange(0, 190, 10))
    coarse = scoring.resample(ramp, 4)
    assert coarse.shape == (4, 2, 2)
    np.testing.assert_array_equal(coarse[1:3, 0, 0], [60, 120])
    np.testing.assert_array_equal(scoring.resample(ramp[::-1], 4), coarse[::-1])
    np.testing.assert_array_equal(scoring.resample(np.full((7, 2, 2), 93, np.uint8), 24), np.full((24, 2, 2), 93))


def test_what_takes_single_images_refuses_networks_that_see_volumes(model, tmp_path):
    volumes = np.zeros((1, 6, 16, 16), np.uint8)
    for use in (model.explain, model.segment, lambda _: formats.write(model, tmp_path / 'model.onnx')):
        with pytest.raises(UserError, match='takes networks that see single images; volumes sees volumes of 6 slices'):
            use(volumes)
    with pytest.raises(UserError, match=r'expected uint8 \[N, 6, 16, 16\]\. model\.preprocess makes each slice'):
        model.predict(volumes[:, 0])
