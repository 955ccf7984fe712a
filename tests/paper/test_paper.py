"""The paper's numbers as printed, and the audit that finds what cannot be right among them."""

import dataclasses
import pkgutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from bhcnet_jax.paper import audit, bhcnet
from bhcnet_jax.paper.bhcnet import PAPER
from bhcnet_jax.plan import table, trial
from bhcnet_jax.statistics import metrics

TABLES = (bhcnet.TABLE_1, bhcnet.TABLE_2, bhcnet.TABLE_3, bhcnet.TABLE_5, bhcnet.TABLE_6)


@pytest.mark.parametrize(
    ('recipe', 'place', 'accuracy'),
    [
        (('cnn', ('balanced',), 24), 'table 1, 24 epochs', '95'),
        (('cnn', ('balanced',), 4), 'table 1, 4 epochs', '80.0'),
        (('cnn', ('balanced', 'imbalanced'), 12), 'table 2, 12 epochs', '100'),
        (('cnn', ('balanced', 'imbalanced'), 24), 'table 2, 24 epochs', '95.5'),
        (('cnn_lstm', ('balanced',), 30), 'table 3, CNN+LSTM with balanced dataset', '90'),
        (('cnn_lstm', ('balanced', 'imbalanced'), 12), 'table 3, CNN+LSTM with imbalanced dataset', '95'),
    ],
)
def test_a_recipe_of_the_paper_has_its_row(recipe, place, accuracy):
    row = bhcnet.row_for(*recipe)
    assert (row.place, row.accuracy) == (place, accuracy)
    assert (row.model, row.phases) == recipe[:2]


@pytest.mark.parametrize(
    'recipe',
    [
        ('cnn_gru', ('balanced',), 24),
        ('cnn_gru', ('balanced', 'imbalanced'), 12),
        ('cnn', ('balanced',), 1),
        ('cnn', ('imbalanced',), 12),
        ('cnn_lstm', ('imbalanced',), 12),
    ],
)
def test_a_recipe_that_the_paper_does_not_print_has_no_row(recipe):
    assert bhcnet.row_for(*recipe) is None


def test_phases_from_a_json_list_find_the_same_row():
    assert bhcnet.row_for('cnn', ['balanced'], 24) == bhcnet.row_for('cnn', ('balanced',), 24)


def test_the_tables_have_all_printed_rows_under_their_own_number():
    assert [len(table) for table in TABLES] == [6, 6, 4, 6, 4]
    assert [{row.table for row in table} for table in TABLES] == [{1}, {2}, {3}, {5}, {6}]


def test_every_printed_confusion_matrix_is_of_twenty_test_images():
    for row in bhcnet.TABLE_1 + bhcnet.TABLE_2:
        assert row.tp + row.tn + row.fp + row.fn == 20, row.place


def test_the_errors_of_the_print_are_kept():
    best_balanced = bhcnet.row_for('cnn', ('balanced',), 24)
    assert (best_balanced.fp, best_balanced.fn, best_balanced.sensitivity) == (0, 1, '100')
    best = bhcnet.row_for('cnn', ('balanced', 'imbalanced'), 12)
    assert (best.fp, best.fn, best.precision, best.f1) == (0, 0, '95.54', '95.0')
    assert bhcnet.row_for('cnn_lstm', ('balanced',), 30).precision == '9 3.34 90'


BHCNET = 'table 3, BHCNet: Proposed CNN with imbalanced dataset'
LSTM = 'table 3, CNN+LSTM with balanced dataset'
FINDINGS = [  # place, name, printed, recomputed: worked out by hand
    ('table 1, 24 epochs', 'counts', 'TP 10, TN 9, FP 0, FN 1', 'TP 10, TN 9, FP 1, FN 0'),
    ('table 1, 24 epochs', 'precision', '90.90', '100'),
    ('table 1, 24 epochs', 'sensitivity', '100', '90.91'),
    ('table 1, 24 epochs', 'specificity', '90.0', '100'),
    ('table 2, 4 epochs', 'f1', '85.0', '86.96'),
    ('table 2, 12 epochs', 'precision', '95.54', '100'),
    ('table 2, 12 epochs', 'f1', '95.0', '100'),
    ('table 2, 20 epochs', 'f1', '78.28', '78.26'),
    ('table 2, 24 epochs', 'accuracy', '95.5', '95'),
    (BHCNET, 'precision', '95.54', '100'),
    (BHCNET, 'f1', '95.0', '100'),
    (LSTM, 'precision', '9 3.34 90', '90'),
    ('table 5, [75]', 'accuracy', 'in emergency', ''),
    ('table 5, [76]', 'f1', '91.45%', '91.93'),
    ('table 5, [77]', 'f1', '94%', '97.5'),
    ('table 5, Proposed BHCNet', 'f1', '95%', '97.72'),
    ('table 6, Epoch 5', 'accuracy', '74%', '75'),
    ('table 6, Epoch 10', 'accuracy', '74.7%', '75'),
    ('table 6, Epoch 30', 'accuracy', '93%', '95'),
    ('section V.A', 'accuracy', '95.3', '95'),
    ('section V.A, rate of true positives', 'sensitivity', '10', '100'),
    ('section V.B', 'specificity', '95.5', '100'),
    ('section V.C, CNN', 'accuracy', '90', '95'),
    ('section VII, CNN + LSTM', 'accuracy', '100', '95'),
    ('section VII, CNN + LSTM', 'precision', '95.54', '90'),
    ('section VII, CNN + LSTM', 'specificity', '100', '90'),
    ('table 5', 'references', '[73], [74], [75], [76], [77]', '[1] to [9]'),
    ('table 6', 'loss', '0.67%, 0.52%, 0.5%, 0.1%', '0.5039 and 0.1794'),
    ('section VI', 'accuracy', '60, 74, 74.71, 93.53', '170 images'),
    ('section V.B', 'training images', '243', '180'),
    ('section IV.D', 'validation images', 'augmented', '0'),
]


def keys(findings):
    return [(each.place, each.name, each.printed, each.recomputed) for each in findings]


def test_the_audit_finds_all_that_cannot_be_right_and_nothing_else():
    assert keys(audit.audit()) == FINDINGS


def test_every_finding_says_what_is_wrong_in_one_sentence_or_two():
    for each in (*audit.audit(), *audit.REMARKS):
        assert each.problem[0].isupper() and each.problem.endswith('.') and '\n' not in each.problem, each


RIGHT = dataclasses.replace(
    PAPER, rows=bhcnet.TABLE_1[:5], studies=(), epochs=(), claims=(), repeats={}, references=99,
    images={'all': 200, 'train': 160, 'test': 20, 'imbalanced': 180, 'augmented': 1000},
)  # fmt: skip


def test_correct_rows_give_no_finding_and_no_remark():
    assert audit.audit(RIGHT) == []
    assert {row.remark for row in RIGHT.rows} == {''}


def altered(row, **cells):
    return keys(audit.audit(dataclasses.replace(RIGHT, rows=(dataclasses.replace(row, **cells),))))


@pytest.mark.parametrize('name', bhcnet.METRICS)
@pytest.mark.parametrize('row', bhcnet.TABLE_1[:5], ids=lambda row: row.place)
def test_an_altered_metric_is_found(row, name):
    printed = '61.5'  # no share of 10 or of 20 images, no precision and no F1 of these rows
    assert [(each[1], each[2]) for each in altered(row, **{name: printed})] == [(name, printed)]


@pytest.mark.parametrize('name', bhcnet.COUNTS)
def test_an_altered_count_is_found(name):
    row = bhcnet.TABLE_1[0]
    found = altered(row, **{name: getattr(row, name) + 1})
    assert found[0][1] == 'counts'
    assert found[0][3] == bhcnet.matrix(row.counts)


def test_an_altered_row_without_counts_is_found():
    row = bhcnet.TABLE_3[0]
    assert altered(row) == []
    assert altered(row, accuracy='90') == [(row.place, 'accuracy', '90', '95')]
    assert altered(row, precision='n/a') == [(row.place, 'precision', 'n/a', '90.91')]


def test_a_number_for_an_undefined_metric_is_found():
    row = dataclasses.replace(bhcnet.TABLE_1[0], tp=0, tn=10, fp=0, fn=10, accuracy='50', sensitivity='0')
    row = dataclasses.replace(row, specificity='100', f1='0')
    assert altered(row, precision='87.5') == [(row.place, 'precision', '87.5', 'undefined')]
    assert altered(row, precision='-') == []


@pytest.mark.parametrize(
    ('cells', 'finding'),
    [
        ({}, None),
        ({'f1': '97.5%'}, None),
        ({'f1': '96%'}, None),  # of 96.5 and 97.5, cut
        ({'f1': '95%'}, ('f1', '95%', '97.5')),
        ({'accuracy': '92%'}, ('accuracy', '92%', '94 to 98')),
        ({'accuracy': '98.5%'}, None),  # a sensitivity of 98.6 is printed 98 too
        ({'accuracy': '99.1%'}, ('accuracy', '99.1%', '94 to 98')),
        ({'precision': 'high'}, ('precision', 'high', '')),
    ],
)
def test_an_altered_row_of_other_studies_is_found(cells, finding):
    row = dataclasses.replace(bhcnet.TABLE_5[4], **({'f1': '-'} | cells))
    found = keys(audit.audit(dataclasses.replace(RIGHT, studies=(row,))))
    assert [each[1:] for each in found] == ([finding] if finding else [])


@pytest.mark.parametrize(
    ('claim', 'finding'),
    [
        (('accuracy', '80'), None),
        (('accuracy', '80.0'), None),
        (('accuracy', '85'), ('85', '80.0')),
        (('f1', '77.8'), None),
        (('f1', '77.6'), ('77.6', '77.77')),
        (('f1', '77.7'), None),
        (('fn', '3'), None),
        (('fn', '2'), ('2', '3')),
    ],
)
def test_a_text_that_contradicts_a_table_is_found(claim, finding):
    claims = (bhcnet.Claim('section X', (1, '04'), *claim),)
    found = keys(audit.audit(dataclasses.replace(RIGHT, claims=claims)))
    assert found == ([('section X', claim[0], *finding)] if finding else [])


def test_a_table_that_contradicts_the_table_it_repeats_is_found():
    rows = list(PAPER.rows)
    rows[12] = dataclasses.replace(rows[12], specificity='80')
    found = keys(audit.audit(dataclasses.replace(PAPER, rows=tuple(rows))))
    assert (rows[12].place, 'specificity', '80', '90.0') in found


def test_numbers_of_images_that_do_not_add_up_are_found():
    images = {'all': 200, 'train': 190, 'test': 20, 'imbalanced': 180, 'augmented': 1000}
    found = keys(audit.audit(dataclasses.replace(RIGHT, images=images)))
    assert found == [('section IV.C', 'training images', '190', '180')]


def test_recomputed_metrics_are_those_of_the_predictions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, probabilities = rng.integers(0, 2, 12), rng.random(12)
        found = metrics.evaluate(labels, probabilities)
        for name, value in bhcnet.recompute(*metrics.counts(labels, probabilities)).items():
            expected = np.nan if value is None else float(value)
            np.testing.assert_allclose(100 * found[name], expected, err_msg=name)


@pytest.mark.parametrize(
    ('printed', 'value', 'right'),
    [
        ('77.77', Fraction(700, 9), True),  # cut
        ('77.78', Fraction(700, 9), True),  # rounded
        ('77.79', Fraction(700, 9), False),
        ('77.76', Fraction(700, 9), False),
        ('77', Fraction(700, 9), True),
        ('100', Fraction(100), True),
        ('93%', Fraction(9353, 100), True),
        ('-', Fraction(1), False),
    ],
)
def test_a_printed_number_may_be_rounded_or_cut(printed, value, right):
    assert bhcnet.fits(printed, value) is right


def test_the_remark_on_a_row_is_computed():
    assert bhcnet.TABLE_2[0].remark == 'the printed counts give an F1 of 86.96'
    assert bhcnet.TABLE_2[2].remark == 'the printed counts give a precision and an F1 of 100'
    assert 'a precision and a specificity of 100, a sensitivity of 90.91' in bhcnet.TABLE_1[5].remark
    assert 'are of 11 + 9 images, not of 10 + 10' in bhcnet.TABLE_1[5].remark
    assert 'TP 9, TN 9, FP 1, FN 1' in bhcnet.TABLE_3[2].remark


def test_the_audit_prints_a_line_per_finding():
    answer = subprocess.run(
        [sys.executable, '-m', 'bhcnet_jax.paper.audit'], capture_output=True, text=True, check=True
    )
    assert len(answer.stdout.splitlines()) == len(FINDINGS) + len(audit.REMARKS)
    assert 'table 2, 4 epochs, F1: 85.0 -> 86.96. The printed counts give 86.96.\n' in answer.stdout


@pytest.mark.parametrize('name', ['balanced', 'imbalanced', 'lstm_balanced', 'lstm_imbalanced'])
def test_the_papers_recipes_read_the_paper(name):
    assert bhcnet.is_papers(settings(name))


@pytest.mark.parametrize('name', ['smoke', 'strong', 'tuned'])
def test_other_recipes_do_not(name):
    assert not bhcnet.is_papers(settings(name))


def settings(name):
    config = pkgutil.resolve_name(f'bhcnet_jax.configs.{name}').get_config()
    return dict(table.leaves(trial.resolve(config)))
