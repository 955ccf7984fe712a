"""On images from elsewhere: the numbers and their intervals, what is refused, and what the report shows of it."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import brier_score_loss, roc_auc_score

import bhcnet_jax
from bhcnet_jax import evaluate
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import evaluation
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.report.evidence import gather
from bhcnet_jax.statistics import metrics


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    """A folder with 60 images of 15 patients, a third of them positive, and columns of scanner and size."""
    folder, generator = tmp_path_factory.mktemp('other') / 'clinic', np.random.default_rng(1)
    folder.mkdir()
    rows = ['file,label,group,scanner,age']
    for number in range(60):
        positive = number % 12 < 4
        pixels = generator.integers(0, 120, (40, 40), np.uint8)
        brighter = generator.integers(0, 60) + 15 * positive
        pixels[10:20, 10:20] += np.uint8(brighter)
        Image.fromarray(pixels).save(folder / f'{number:02}.png')
        rows.append(f'{number:02}.png,{int(positive)},p{number // 4},{"AB"[number // 4 % 2]},{20 + number}')
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    return folder


@pytest.fixture(autouse=True)
def prepared(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.getbasetemp() / 'tfds'))


def evaluated(model, data, out, *more):
    evaluate.main([str(model), f'--data={data}', f'--out={out}', *more])
    return json.loads((out / 'evaluation.json').read_text()), pd.read_csv(out / 'images.csv', keep_default_na=False)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_libraries_on_the_probabilities_of_the_model(crossed, elsewhere, tmp_path):
    found, rows = evaluated(crossed, elsewhere, tmp_path / 'on')
    model = bhcnet_jax.load(crossed)
    images = np.stack([model.preprocess(elsewhere / name) for name in rows.id])
    np.testing.assert_allclose(rows.used, model.predict(images), atol=1e-6)
    whole, largest, three = found['results']
    told = {name: each['value'] for name, each in whole['metrics'].items()}
    labels, p = rows.label.to_numpy(bool), rows.used.to_numpy()
    assert (whole['n'], whole['positives'], found['data']['groups']) == (60, 20, 15)
    assert told['auc'] == pytest.approx(roc_auc_score(labels, p))
    assert told['brier'] == pytest.approx(brier_score_loss(labels, p))
    assert told['sensitivity'] == pytest.approx(np.mean(p[labels] >= 0.5))
    assert told['specificity'] == pytest.approx(np.mean(p[~labels] < 0.5))
    act = 0.2
    benefit = (np.sum(p[labels] >= act) - np.sum(p[~labels] >= act) * act / (1 - act)) / 60
    assert told['net benefit at 0.2'] == pytest.approx(benefit)
    recalibrated = metrics.calibration(labels, p)
    assert (told['intercept'], told['slope']) == (recalibrated.intercept[0], recalibrated.slope[0])
    of_group = rows.groupby('group').agg(label=('label', 'max'), used=('used', 'max'))
    assert (largest['of'], largest['n']) == ('groups, largest', 15)
    assert largest['metrics']['auc']['value'] == pytest.approx(roc_auc_score(of_group.label, of_group.used))
    top = rows.groupby('group').used.apply(lambda each: np.sort(each)[-3:].mean())
    assert three['metrics']['auc']['value'] == pytest.approx(roc_auc_score(of_group.label, top))


@pytest.mark.slow
def test_intervals_draw_patients_not_slices(tmp_path):
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(40) % 2 == 1, 25)
    of_patient = np.repeat(generator.normal(0, 1, 40), 25) + 0.5 * label
    rows = pd.DataFrame({'label': label, 'used': 1 / (1 + np.exp(-of_patient)), 'unit': np.repeat(np.arange(40), 25)})
    by_patient = evaluation._row('x', rows, 0.5)['metrics']
    by_slice = evaluation._row('x', rows.assign(unit=np.arange(1000)), 0.5)['metrics']
    for name in ('auc', 'sensitivity', 'brier', 'slope'):
        patients, slices = (each[name]['high'] - each[name]['low'] for each in (by_patient, by_slice))
        assert patients > 3 * slices
        assert by_patient[name]['value'] == by_slice[name]['value']
    at_third = evaluation._row('x', rows, 0.3)['metrics']
    assert at_third['sensitivity']['value'] == pytest.approx(np.mean(rows.used[label] >= 0.3))
    assert at_third['specificity']['value'] == pytest.approx(np.mean(rows.used[~label] < 0.3))


def test_columns_with_a_few_values_part_the_images(crossed, elsewhere, tmp_path):
    found, rows = evaluated(crossed, elsewhere, tmp_path / 'on')
    assert [each['of'] for each in found['subgroups']] == ['scanner = A', 'scanner = B']  # age has 60 values
    for each, name in zip(found['subgroups'], 'AB', strict=True):
        part = rows[rows['column scanner'] == name]
        assert (each['n'], each['positives']) == (len(part), part.label.sum())
        assert each['metrics']['auc']['value'] == pytest.approx(roc_auc_score(part.label, part.used))


def test_training_images_are_refused_or_left_out(crossed, elsewhere, heads, tmp_path, refusal):
    assert 'all 24 images are training images' in refusal(evaluated, crossed, heads, tmp_path / 'on')
    assert not (tmp_path / 'on').exists()
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    for number, source in enumerate([*sorted(heads.glob('*.png'))[:3], *sorted(elsewhere.glob('*.png'))]):
        Image.open(source).save(mixed / f'{number:02}.bmp')  # other files, the same pixels
    labels = [0, 1, 0, *(int(number % 12 < 4) for number in range(60))]
    (mixed / 'labels.csv').write_text('file,label\n' + ''.join(f'{n:02}.bmp,{each}\n' for n, each in enumerate(labels)))
    line = refusal(evaluated, crossed, mixed, tmp_path / 'on')
    assert '3 of 63 images are training images of tiny cnn, the first 00.bmp' in line
    found, rows = evaluated(crossed, mixed, tmp_path / 'on', '--leave_out_training_images')
    assert (found['data']['images'], found['data']['left_out'], len(rows)) == (60, 3, 60)
    assert len(found['results']) == 1  # no groups


def test_equalised_images_have_the_resolution_of_the_training_set(equalised, elsewhere):
    model = bhcnet_jax.load(equalised)
    image_set = evaluation.read_images(model, elsewhere)
    for name, image in zip(image_set.ids, image_set.images, strict=True):
        np.testing.assert_array_equal(image, model.preprocess(elsewhere / name))


@pytest.mark.slow
def test_looks_are_counted_and_a_folder_keeps_to_its_images(crossed, elsewhere, heads, tmp_path):
    for look in (1, 2):
        found, _ = evaluated(crossed, elsewhere, tmp_path / 'on', f'--trials=seed={look - 1}')
        assert found['looks'] == look
    with pytest.raises(UserError, match='holds an evaluation on other images'):
        evaluation.evaluations.write({**found, 'data': {'fingerprint': 'x'}}, pd.DataFrame(), tmp_path / 'on', '')


def test_the_page_of_errors_shows_the_worst_and_says_that_it_is_private(crossed, elsewhere, tmp_path):
    _, rows = evaluated(crossed, elsewhere, tmp_path / 'on', f'--errors={tmp_path}/errors.html')
    source = (tmp_path / 'errors.html').read_text()
    wrong = rows[rows.label.astype(bool) != rows.positive.astype(bool)]
    assert len(wrong) and source.count('<img') == len(wrong)
    assert 'not for publication' in source
    for name in wrong.id:
        assert f'{name}, p = ' in source


@pytest.mark.slow
def test_the_report_shows_them_beside_the_out_of_fold_numbers(crossed, elsewhere, tmp_path):
    found, _ = evaluated(crossed, elsewhere, crossed / 'on-clinic')
    try:
        made = report.make(gather([crossed]), with_images=False)
    finally:
        for file in (crossed / 'on-clinic').iterdir():
            file.unlink()
        (crossed / 'on-clinic').rmdir()
    report.write(made, tmp_path / 'report.html')
    table = pd.read_csv(tmp_path / 'report.csv').query("section == 'On other images'")
    text = (tmp_path / 'report.md').read_text()
    auc = table.query("table == 'elsewhere' and column == 'AUC'").set_index('row')
    whole = found['results'][0]['metrics']['auc']
    row = auc.loc['tiny cnn on clinic: images']
    assert (row.value, row.low, row.high, row.n) == pytest.approx((whole['value'], whole['low'], whole['high'], 60))
    (out_of_fold,) = (name for name in auc.index if name.endswith(', out of fold'))
    assert auc.n[out_of_fold] == 12
    assert {'scanner = A', 'scanner = B'} <= {*table.row}
    assert 'Times that these images were looked at: 1' in text and 'no external test' not in text
    report.write(report.make(gather([crossed]), with_images=False), tmp_path / 'without.html')
    assert 'no external test' in (tmp_path / 'without.md').read_text()


@pytest.mark.slow
def test_mistakes_are_one_line(crossed, elsewhere, tmp_path, refusal):
    (tmp_path / 'on').mkdir()
    (tmp_path / 'on/evaluation.json').write_text('{"format": 1}')
    for arguments, message in (
        ((crossed, tmp_path / 'missing', tmp_path / 'x'), 'does not exist'),
        ((crossed, elsewhere, tmp_path / 'on'), 'evaluation.json cannot be read'),
        ((tmp_path, elsewhere, tmp_path / 'x'), 'expected the run directory'),
    ):
        assert message in refusal(evaluated, *arguments)
