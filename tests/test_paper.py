import pytest

from bhcnet_jax.report import paper

TABLES = (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3)


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
    row = paper.row_for(*recipe)
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
    assert paper.row_for(*recipe) is None


def test_phases_from_a_json_list_find_the_same_row():
    assert paper.row_for('cnn', ['balanced'], 24) == paper.row_for('cnn', ('balanced',), 24)


def test_the_tables_have_all_printed_rows_under_their_own_number():
    assert [len(table) for table in TABLES] == [6, 6, 4]
    assert [{row.table for row in table} for table in TABLES] == [{1}, {2}, {3}]


def test_every_printed_confusion_matrix_is_of_twenty_test_images():
    for row in paper.TABLE_1 + paper.TABLE_2:
        assert row.tp + row.tn + row.fp + row.fn == 20, row.place


def test_only_the_rows_known_for_it_contradict_their_own_counts():
    """Sensitivity and specificity, printed and from the counts: a slip in copying would show here too."""
    wrong = [
        row.place
        for row in paper.TABLE_1 + paper.TABLE_2
        if abs(100 * row.tp / (row.tp + row.fn) - float(row.sensitivity)) > 0.01
        or abs(100 * row.tn / (row.tn + row.fp) - float(row.specificity)) > 0.01
    ]
    assert wrong == ['table 1, 24 epochs']


def test_the_errors_of_the_print_are_kept():
    best_balanced = paper.row_for('cnn', ('balanced',), 24)
    assert (best_balanced.fp, best_balanced.fn, best_balanced.sensitivity) == (0, 1, '100')
    best = paper.row_for('cnn', ('balanced', 'imbalanced'), 12)
    assert (best.fp, best.fn, best.precision, best.f1) == (0, 0, '95.54', '95.0')
    assert paper.row_for('cnn_lstm', ('balanced',), 30).precision == '9 3.34 90'
