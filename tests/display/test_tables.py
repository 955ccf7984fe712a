import io
import math
import re

import pytest
from rich.console import Console

from bhcnet_jax.display import tables
from bhcnet_jax.paper import bhcnet

RESULT = {
    'tp': 9, 'tn': 7, 'fp': 3, 'fn': 1, 'accuracy': 0.8, 'precision': 0.75, 'sensitivity': 0.9,
    'specificity': 0.7, 'f1': 0.8182, 'auc': 0.913, 'log_loss': 0.4567, 'brier': 0.1234,
}  # fmt: skip
INTERVALS = {
    'accuracy': (0.5840, 0.9193),
    'precision': (0.4677, 0.9111),
    'sensitivity': (0.5958, 0.9821),
    'specificity': (0.3968, 0.8922),
}
BEST = bhcnet.row_for('cnn', ('balanced', 'imbalanced'), 12)


def printed(
    result=RESULT, intervals=INTERVALS, row=BEST, synthetic=False, width=80, encoding='utf-8',
    classes=('normal', 'hemorrhage'),
):  # fmt: skip
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=width)
    tables.print_result(result, intervals, row, synthetic, classes, console=console)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def cells(text, metric):
    """The cells of the metric's line; columns stand two or more spaces apart."""
    line = next(line for line in text.splitlines() if line.strip().startswith(metric))
    return re.split(r'\s{2,}', line.strip())


@pytest.mark.parametrize(
    ('metric', 'expected'),
    [
        ('accuracy', ['80.0 %', '58.4 to 91.9 %', '20', '100 %']),
        ('precision', ['75.0 %', '46.8 to 91.1 %', '12', '95.54 %']),
        ('sensitivity', ['90.0 %', '59.6 to 98.2 %', '10', '100 %']),
        ('specificity', ['70.0 %', '39.7 to 89.2 %', '10', '100 %']),
        ('F1', ['81.8 %', '-', '20', '95.0 %']),
        ('AUC', ['0.913', '-', '20', '-']),
        ('log-loss', ['0.457', '-', '20', '-']),
        ('Brier', ['0.123', '-', '20', '-']),
    ],
)
def test_a_metric_stands_beside_its_interval_its_n_and_the_papers_value(metric, expected):
    assert cells(printed(), metric)[1:] == expected


def test_an_interval_of_a_score_is_not_in_per_cent():
    assert cells(printed(intervals={'auc': (0.75, 1.0)}), 'AUC')[1:3] == ['0.913', '0.750 to 1.000']


def test_the_confusion_matrix_has_actual_classes_in_rows():
    text = printed()
    assert cells(text, 'hemorrhage') == ['hemorrhage', 'TP 9', 'FN 1']
    assert cells(text, 'normal') == ['normal', 'FP 3', 'TN 7']


def test_names_of_classes_are_shown_as_they_are():
    text = printed(classes=('[/b]', '[red]x'))
    assert cells(text, '[red]x') == ['[red]x', 'TP 9', 'FN 1']
    assert cells(text, 'actual') == ['actual', 'predicted [red]x', 'predicted [/b]']


def test_a_metric_without_a_value_is_undefined():
    result = RESULT | {'tp': 0, 'fp': 0, 'precision': math.nan}
    text = printed(result, INTERVALS | {'precision': (math.nan, math.nan)})
    assert cells(text, 'precision')[1:4] == ['undefined', '-', '0']
    assert 'nan' not in text


def test_the_paper_is_quoted_with_its_place_counts_and_errors():
    text = ' '.join(printed().split())
    assert 'Paper: table 2, 12 epochs, as printed, from 20 test images.' in text
    assert 'Its counts: TP 10, TN 10, FP 0, FN 0.' in text
    assert 'The printed counts give a precision and an F1 of 100.' in text


def test_a_row_of_table_3_is_quoted_without_counts():
    text = ' '.join(printed(row=bhcnet.row_for('cnn_lstm', ('balanced',), 30)).split())
    assert 'It prints neither counts nor epochs.' in text
    assert 'None' not in text


def test_without_a_row_the_paper_is_not_mentioned():
    text = printed(row=None)
    assert 'paper' not in text.lower()
    assert cells(text, 'accuracy') == cells(printed(), 'accuracy')[:-1]


def test_synthetic_images_are_named_in_every_title_and_in_the_papers_column():
    text = printed(synthetic=True)
    titles = [line for line in text.splitlines() if 'Test part' in line]
    assert len(titles) == 2
    assert all('PHANTOM' in title for title in titles)
    assert 'paper (real images)' in text


def test_real_images_are_not_called_phantom():
    text = printed()
    assert 'PHANTOM' not in text
    assert 'real images' not in text


def test_eighty_columns_hold_every_metric_on_one_line():
    text = printed(synthetic=True, row=bhcnet.row_for('cnn_lstm', ('balanced',), 30))
    assert max(map(len, text.splitlines())) <= 80
    assert cells(text, 'precision') == ['precision', '75.0 %', '46.8 to 91.1 %', '12', '9 3.34 90 %']


def test_what_is_not_a_terminal_gets_no_colour():
    assert '\x1b' not in printed()


def test_a_narrow_ascii_log_loses_no_number():
    text = printed(synthetic=True, width=50, encoding='ascii')
    assert max(map(len, text.splitlines())) <= 50
    for number in ('80.0', '58.4', '91.9', '0.457', 'PHANTOM'):
        assert number in text


def test_the_model_table_adds_up_its_parameters():
    file = io.StringIO()
    rows = [('conv_0', (128, 128, 32), 320), ('pool_0', (64, 64, 32), 0), ('head', (1,), 1129)]
    tables.print_model_table(iter(rows), Console(file=file, width=80))
    text = file.getvalue()
    assert cells(text, 'conv_0') == ['conv_0', '128 x 128 x 32', '320']
    assert cells(text, 'head') == ['head', '1', '1,129']
    assert cells(text, 'total') == ['total', '1,449']
