"""Tables 1, 2 and 3 of BHCNet (Anjum and Oberoi, 2022), as printed, errors included.

Every number is the string that the paper prints, in per cent where it is a metric, because its digits
('90.90' against '90.9') say how it was rounded. The text available to us has no page numbers, so a number's
place is its table and row.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One printed row.

    Attributes:
      table: 1, 2 or 3.
      row: what the first column of the row prints.
      model, phases: the recipe in the words of `configs/base.py`.
      epochs: of the last phase; None in table 3, which prints none.
      tp, tn, fp, fn: test images; None in table 3, which prints none.
      accuracy, precision, sensitivity, specificity, f1: per cent, as printed.
      remark: what is wrong with the print itself; '' for nothing.
    """

    table: int
    row: str
    model: str
    phases: tuple[str, ...]
    epochs: int | None
    tp: int | None
    tn: int | None
    fp: int | None
    fn: int | None
    accuracy: str
    precision: str
    sensitivity: str
    specificity: str
    f1: str
    remark: str = ''

    @property
    def place(self) -> str:
        return f'table {self.table}, {self.row if self.epochs is None else f"{self.epochs} epochs"}'


BALANCED = ('balanced',)
IMBALANCED = ('balanced', 'imbalanced')

# paper, table 1: "Experimental results of CNN model with balanced dataset". In row 24 the counts and the
# metrics contradict each other: FP 0 and FN 1 beside a sensitivity of 100 and a specificity of 90.
TABLE_1 = (
    PaperRow(1, '04', 'cnn', BALANCED, 4, 7, 9, 1, 3, '80.0', '87.5', '70.0', '90.0', '77.77'),
    PaperRow(1, '08', 'cnn', BALANCED, 8, 8, 8, 2, 2, '80.0', '80.0', '80.0', '80.0', '80.0'),
    PaperRow(1, '12', 'cnn', BALANCED, 12, 1, 10, 0, 9, '55.0', '100', '10', '100', '18.18'),
    PaperRow(1, '16', 'cnn', BALANCED, 16, 10, 8, 2, 0, '90.0', '83.33', '100', '80.0', '90.90'),
    PaperRow(1, '20', 'cnn', BALANCED, 20, 10, 8, 2, 0, '90.0', '83.33', '100', '80.0', '90.90'),
    PaperRow(1, '24', 'cnn', BALANCED, 24, 10, 9, 0, 1, '95', '90.90', '100', '90.0', '95.23',
             remark='the printed FP and FN contradict the printed precision, sensitivity and specificity'),
)  # fmt: skip

# paper, table 2: "Proposed BHCNet experimental results using CNN model with imbalanced dataset". In row 12 no
# prediction is wrong, beside a precision of 95.54 and an F1 of 95.0.
TABLE_2 = (
    PaperRow(2, '04', 'cnn', IMBALANCED, 4, 10, 7, 3, 0, '85.0', '76.92', '100', '70.0', '85.0'),
    PaperRow(2, '08', 'cnn', IMBALANCED, 8, 10, 9, 1, 0, '95.0', '90.90', '100', '90.0', '95.23'),
    PaperRow(2, '12', 'cnn', IMBALANCED, 12, 10, 10, 0, 0, '100', '95.54', '100', '100', '95.0',
             remark='the printed counts give a precision and an F1 of 100'),
    PaperRow(2, '16', 'cnn', IMBALANCED, 16, 9, 10, 0, 1, '95.0', '100', '90.0', '100', '94.73'),
    PaperRow(2, '20', 'cnn', IMBALANCED, 20, 9, 6, 4, 1, '75.0', '69.23', '90.0', '60.0', '78.28'),
    PaperRow(2, '24', 'cnn', IMBALANCED, 24, 10, 9, 1, 0, '95.5', '90.90', '100', '90.0', '95.23'),
)  # fmt: skip

# paper, table 3: "Comparative representation of results of proposed BHCNet, CNN, hybrid model CNN C models
# with balanced and imbalanced dataset". It prints neither counts nor epochs; its first two rows stand in one
# cell each and are taken apart here.
TABLE_3 = (
    PaperRow(3, 'Proposed CNN with balanced dataset', 'cnn', BALANCED,
             None, None, None, None, None, '95', '90.90', '100', '90', '95.23'),
    PaperRow(3, 'BHCNet: Proposed CNN with imbalanced dataset', 'cnn', IMBALANCED,
             None, None, None, None, None, '100', '95.54', '100', '100', '95.0'),
    PaperRow(3, 'CNN+LSTM with balanced dataset', 'cnn_lstm', BALANCED,
             None, None, None, None, None, '90', '9 3.34 90', '90', '90', '90',
             remark='the precision is printed as "9 3.34 90"'),
    PaperRow(3, 'CNN+LSTM with imbalanced dataset', 'cnn_lstm', IMBALANCED,
             None, None, None, None, None, '95', '90', '100', '90', '95.23'),
)  # fmt: skip


def row_for(model: str, phases: tuple[str, ...], epochs: int) -> PaperRow | None:
    """The paper's row for the same recipe, or None where it prints none (any cnn_gru, other epochs).

    model, phases: as in the config. epochs: of the last phase. The CNN is looked up by its epochs in tables 1
    and 2; table 3 prints no epochs, so that its rows of the CNN + LSTM stand for any number of them.
    """
    tables = TABLE_1 + TABLE_2 if model == 'cnn' else TABLE_3
    for row in tables:
        if (row.model, row.phases) == (model, tuple(phases)) and row.epochs in (None, epochs):
            return row
    return None
