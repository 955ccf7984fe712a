"""The paper's rows beside ours, and single trainings as the paper reports one."""

import dataclasses
import re

import numpy as np
import pytest

import studies
from bhcnet_jax.report import evidence, paper
from bhcnet_jax.report.page import Table
from bhcnet_jax.report.sections.paper_tables import paper_tables
from studies import numbers, section, text

BESIDE = "The paper's tables beside ours"


def test_a_paper_row_stands_beside_the_recipe_with_its_model_phases_and_epochs(real):
    lines = section(real, "The paper's tables beside ours").splitlines()
    rows = [line for line in lines if line.startswith(('| Paper', '| This study'))]
    place = next(place for place, row in enumerate(rows) if row.startswith('| This study'))
    assert rows[place - 1].startswith('| Paper, table 2, 12 epochs: cnn, balanced then imbalanced | 100 (83.9')


def test_the_papers_table_of_earlier_systems_stands_beside_ours_of_the_same_kind(tmp_path):
    found = evidence.gather(studies.write(tmp_path))
    cnn = next(each for each in found.recipes if each.kind == 'network' and paper.row_of(each.trials, each.settings))
    svm = dataclasses.replace(cnn, kind='features', label='svm', trials=cnn.trials.assign(model='linear SVM'))
    section = paper_tables(dataclasses.replace(found, recipes=[cnn, svm]))
    table = next(each for each in section.blocks if isinstance(each, Table) and each.name == 'table-5')
    names = [row[0] for row in table.rows]
    assert [name for name in names if name.startswith('Paper')] == [
        'Paper, table 5, [73], 2019: AlexNet-SVM',
        'Paper, table 5, [74], 2019: hybrid 3D/2D mask ROI- based CNN architecture',
        'Paper, table 5, [75], 2019: technique not printed',
        'Paper, table 5, [76], 2019: CNN',
        'Paper, table 5, [77], 2020: 3D CNN',
        'Paper, table 5, Proposed BHCNet, 2021: CNN',
    ]
    assert names[1] == 'This study: svm'
    assert names[-1] == f'This study: {cnn.label}'
    assert table.rows[-2][1:] == ['100%', '95.54%', '100%', '100%', '95%']
    assert table.rows[-1][1].value == cnn.scores['accuracy'].mean
    assert len(names) == 8


def test_other_images_are_not_compared_with_the_paper_whatever_their_set_is_called(tmp_path, monkeypatch):
    monkeypatch.setitem(studies.FINGERPRINTS, 'head_ct', studies.OTHER)
    studies.report(tmp_path)
    assert "The paper's tables beside ours" not in text(tmp_path)
    assert 'the paper' not in section(tmp_path, 'Answer').lower()


def test_a_holdout_that_is_drawn_again_is_told_by_its_spread_and_not_as_so_many_recipes(tmp_path):
    directories = studies.write(tmp_path)
    again = studies.write_holdouts(tmp_path, {4: [16, 12, 15], 24: [19, 20, 11]})
    studies.make_report(tmp_path, *directories, again)
    rows = numbers(tmp_path, 'holdouts').value
    of_4, of_24 = (rows[f'balanced {epochs} epochs'] for epochs in (4, 24))
    for of, right, printed in ((of_4, [16, 12, 15], 0.8), (of_24, [19, 20, 11], 0.95)):
        accuracies = np.array(right) / 20
        names = ('lowest', 'lower quartile', 'median', 'upper quartile', 'highest')
        np.testing.assert_allclose(of[list(names)], np.quantile(accuracies, (0, 0.25, 0.5, 0.75, 1)))
        assert of['mean'] == pytest.approx(accuracies.mean())
        assert of["the paper's"] == printed
        assert of["reached the paper's"] == pytest.approx(np.mean(accuracies >= printed))
    assert not [row for row, _ in numbers(tmp_path, 'leaderboard').index if row.startswith('balanced')]
    assert 'id="holdouts"' in text(tmp_path, 'html')


def test_holdouts_alone_are_recipes(tmp_path):
    again = studies.write_holdouts(tmp_path, {4: [16, 12]})
    studies.make_report(tmp_path, again)
    assert len({row for row, _ in numbers(tmp_path, 'leaderboard').index}) == 2


@pytest.mark.parametrize(
    ('key', 'value'),
    [('model.convs', 2), ('model.norm', 'group'), ('dataset.image_size', 32), ('augment.samples', 200)],
)
def test_another_recipe_than_the_papers_stands_beside_no_row_of_the_paper(tmp_path, key, value):
    found = evidence.gather(studies.write(tmp_path)[:1]).recipes[0]
    beside = [paper.row_of(found.trials, each) for each in (found.settings, {key: value})]
    assert beside[0] and beside[1] is None


def test_rows_that_do_not_tell_their_recipe_are_not_missing(real):
    missing = re.search(r'Missing: recipes for (\d+) of the (\d+) rows', section(real, BESIDE))
    assert missing.groups() == ('13', '14')  # of table 3, the CNN's two rows print no epochs


def test_captions_tell_rows_cross_validated_here_from_those_trained_on_holdouts(tmp_path):
    again = studies.write_holdouts(tmp_path, {4: [16, 12, 15], 24: [19, 20, 11]})
    studies.make_report(tmp_path, *studies.write(tmp_path), again)
    told = section(tmp_path, BESIDE)
    assert "The 1 of 16 rows of the paper's tables 1, 2 and 3 that were cross-validated here" in told
    assert 'as printed; 2 were trained on holdout splits, see "Single trainings on single splits"' in told
    assert '\n## 4. Single trainings on single splits\n' in text(tmp_path)
