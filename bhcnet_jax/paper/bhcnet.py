"""What BHCNet (Anjum and Oberoi, 2022) prints: tables 1, 2, 3, 5 and 6 (there is no table 4) and its text's figures.

Every number is the string that the paper prints, errors included, in per cent where it is a metric, because its digits
('90.90' against '90.9') say how it was rounded. The text available to us has no page numbers, so a number's place is
its table and row, or its section. `audit.audit` finds what cannot be right; `remark` says it of one row.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from bhcnet_jax.configs import base

METRICS = ('accuracy', 'precision', 'sensitivity', 'specificity', 'f1')
COUNTS = ('tp', 'tn', 'fp', 'fn')
NAMES = {'f1': 'F1'} | {name: name.upper() for name in COUNTS}
# paper, IV.C, V.B and V
IMAGES = {'all': 200, 'train': 180, 'test': 20, 'imbalanced': 243, 'augmented': 1000}
TEST_PER_CLASS = 10  # paper, IV.C
REFERENCES = 9  # the number of the last entry in the paper's list

FINGERPRINT = '6b93e0a7808bd2ff503025cb1013e1582b53cb4eda4bf841a95c3f1ea62047fb'  # of its 200 files
# Keys in which another value than that of configs/base.py makes another recipe than our reading of the paper.
READING = (
    *('dataset.image_size', 'dataset.equalise', 'optimizer.peak_lr', 'imbalanced.positives'),
    *(f'model.{name}' for name in ('filters', 'convs', 'norm', 'pooling', 'hidden_units')),
    *(f'augment.{name}' for name in ('policy', 'samples', 'frozen', 'test_flip')),
)

Matrix = tuple[int, int, int, int]  # tp, tn, fp, fn


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One printed row of table 1, 2 or 3.

    Attributes:
      table: 1, 2 or 3.
      row: what the first column of the row prints.
      model, phases: the recipe in the words of `configs/base.py`.
      epochs: of the last phase; None in table 3, which prints none.
      tp, tn, fp, fn: test images; None in table 3, which prints none.
      accuracy, precision, sensitivity, specificity, f1: per cent, as printed.
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

    @property
    def place(self) -> str:
        return f'table {self.table}, {self.row if self.epochs is None else f"{self.epochs} epochs"}'

    @property
    def counts(self) -> Matrix | None:
        """The printed confusion matrix; None in table 3."""
        return None if self.tp is None else (self.tp, self.tn, self.fp, self.fn)

    @property
    def remark(self) -> str:
        """What cannot be right in the row itself, without capital and full stop; '' for nothing."""
        wrong: dict[str, list[str]] = {}
        for name, value in misprints(self).items():
            wrong.setdefault(shown(value), []).append(f'{"an" if name in ("accuracy", "f1") else "a"} {label(name)}')
        metrics = ', '.join(f'{" and ".join(names)} of {value}' for value, names in wrong.items())
        counts = 'the printed counts' if self.counts else f'the counts that fit best ({matrix(closest(self))})'
        parts = [f'{counts} give {metrics}'] if metrics else []
        if not of_test_images(self):
            parts.append(f'the printed counts are of {self.tp + self.fn} + {self.tn + self.fp} images, not of 10 + 10')
        return '; '.join(parts)


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """One printed row of table 5, without its column on the data set. '-' is printed where a study has no figure."""

    row: str  # its first column
    year: int
    technique: str
    accuracy: str
    specificity: str
    precision: str
    sensitivity: str
    f1: str
    table: int = 5

    @property
    def place(self) -> str:
        return f'table {self.table}, {self.row}'


@dataclasses.dataclass(frozen=True)
class EpochRow:
    """One printed row of table 6: the CNN + LSTM of section VI."""

    row: str  # its first column
    accuracy: str
    loss: str
    table: int = 6

    @property
    def place(self) -> str:
        return f'table {self.table}, {self.row}'


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure that the text gives of what a table has too.

    Attributes:
      place: its section, or the table that repeats another one.
      about: table and row, of which it speaks.
      name: the row's field.
      printed: the figure, without its sign for per cent.
    """

    place: str
    about: tuple[int, str]
    name: str
    printed: str


@dataclasses.dataclass(frozen=True)
class Paper:
    """All that is printed. repeats: row -> the earlier row with the same experiment."""

    rows: tuple[PaperRow, ...]
    studies: tuple[StudyRow, ...]
    epochs: tuple[EpochRow, ...]
    claims: tuple[Claim, ...]
    repeats: dict[tuple[int, str], tuple[int, str]]
    images: dict[str, int]
    references: int

    def find(self, about: tuple[int, str]) -> PaperRow | StudyRow | EpochRow:
        """The row of a table. KeyError: there is none."""
        return {(row.table, row.row): row for row in (*self.rows, *self.studies, *self.epochs)}[about]


BALANCED = ('balanced',)
IMBALANCED = ('balanced', 'imbalanced')

# paper, table 1: "Experimental results of CNN model with balanced dataset".
TABLE_1 = (
    PaperRow(1, '04', 'cnn', BALANCED, 4, 7, 9, 1, 3, '80.0', '87.5', '70.0', '90.0', '77.77'),
    PaperRow(1, '08', 'cnn', BALANCED, 8, 8, 8, 2, 2, '80.0', '80.0', '80.0', '80.0', '80.0'),
    PaperRow(1, '12', 'cnn', BALANCED, 12, 1, 10, 0, 9, '55.0', '100', '10', '100', '18.18'),
    PaperRow(1, '16', 'cnn', BALANCED, 16, 10, 8, 2, 0, '90.0', '83.33', '100', '80.0', '90.90'),
    PaperRow(1, '20', 'cnn', BALANCED, 20, 10, 8, 2, 0, '90.0', '83.33', '100', '80.0', '90.90'),
    PaperRow(1, '24', 'cnn', BALANCED, 24, 10, 9, 0, 1, '95', '90.90', '100', '90.0', '95.23'),
)  # fmt: skip

# paper, table 2: "Proposed BHCNet experimental results using CNN model with imbalanced dataset".
TABLE_2 = (
    PaperRow(2, '04', 'cnn', IMBALANCED, 4, 10, 7, 3, 0, '85.0', '76.92', '100', '70.0', '85.0'),
    PaperRow(2, '08', 'cnn', IMBALANCED, 8, 10, 9, 1, 0, '95.0', '90.90', '100', '90.0', '95.23'),
    PaperRow(2, '12', 'cnn', IMBALANCED, 12, 10, 10, 0, 0, '100', '95.54', '100', '100', '95.0'),
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
             None, None, None, None, None, '90', '9 3.34 90', '90', '90', '90'),
    PaperRow(3, 'CNN+LSTM with imbalanced dataset', 'cnn_lstm', IMBALANCED,
             None, None, None, None, None, '95', '90', '100', '90', '95.23'),
)  # fmt: skip


# paper, table 5: "Analyses of previously used approaches with proposed approach".
TABLE_5 = (
    StudyRow('[73]', 2019, 'AlexNet-SVM', '93%', '90%', '-', '95%', '-'),
    StudyRow('[74]', 2019, 'hybrid 3D/2D mask ROI- based CNN architecture', '97.5%', '97.5%', '79.3%', '97.1%', '-'),
    StudyRow('[75]', 2019, '', 'in emergency', '94.2%', '73.7%', '88.7%', '-'),
    StudyRow('[76]', 2019, 'CNN', '91%', '-', '90.89%', '93%', '91.45%'),
    StudyRow('[77]', 2020, '3D CNN', '97%', '94%', '97%', '98%', '94%'),
    StudyRow('Proposed BHCNet', 2021, 'CNN', '100%', '100%', '95.54%', '100%', '95%'),
)

# paper, table 6: "The results of the evaluated model".
TABLE_6 = (
    EpochRow('Epoch 1', '60%', '0.67%'),
    EpochRow('Epoch 5', '74%', '0.52%'),
    EpochRow('Epoch 10', '74.7%', '0.5%'),
    EpochRow('Epoch 30', '93%', '0.1%'),
)

_CNN, _BHCNET, _LSTM, _LSTM_IMBALANCED = ((3, row.row) for row in TABLE_3)
_BEST_BALANCED, _BEST = (1, '24'), (2, '12')
REPEATS = {_CNN: _BEST_BALANCED, _BHCNET: _BEST, (5, 'Proposed BHCNet'): _BEST}


def _claims(place: str, about: tuple[int, str], **printed: str) -> tuple[Claim, ...]:
    return tuple(Claim(place, about, name, text) for name, text in printed.items())


CLAIMS = (
    *_claims('section V.A', _BEST_BALANCED, f1='95.23', precision='90.90', sensitivity='100', accuracy='95.3'),
    *_claims('section V.A', _BEST_BALANCED, tp='10', tn='9', fp='0', fn='1'),
    *_claims('section V.A, rate of true positives', _BEST_BALANCED, sensitivity='10'),
    *_claims('section V.A, after table 1', _BEST_BALANCED, accuracy='95'),
    *_claims('section V.B', _BEST, specificity='95.5', accuracy='100', sensitivity='100', f1='95'),
    *_claims('section V.B', _BEST, tp='10', tn='10', fp='0', fn='0'),
    *_claims('section V.C, CNN', _CNN, accuracy='90'),
    *_claims('section V.C, CNN + LSTM', _LSTM_IMBALANCED, accuracy='95'),
    *_claims('section V.C, BHCNet', _BHCNET, accuracy='100', f1='95', precision='95.54', sensitivity='100'),
    *_claims('section V.C, BHCNet', _BHCNET, specificity='100'),
    *_claims('section VI.A', (6, 'Epoch 1'), accuracy='60'),
    *_claims('section VI.B', (6, 'Epoch 5'), accuracy='74'),
    *_claims('section VI.C', (6, 'Epoch 10'), accuracy='74.71', loss='0.5039'),
    *_claims('section VI.D', (6, 'Epoch 30'), accuracy='93.53', loss='0.1794'),
    *_claims('section VII, CNN', _CNN, accuracy='95'),
    *_claims('section VII, CNN + LSTM', _LSTM_IMBALANCED, accuracy='100', f1='95', precision='95.54'),
    *_claims('section VII, CNN + LSTM', _LSTM_IMBALANCED, sensitivity='100', specificity='100'),
)

PAPER = Paper(TABLE_1 + TABLE_2 + TABLE_3, TABLE_5, TABLE_6, CLAIMS, REPEATS, IMAGES, REFERENCES)


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


def is_papers(settings: Mapping[str, Any]) -> bool:
    """Whether a recipe reads the paper as configs/base.py does. settings: dotted key -> value, as far as known."""
    reading = base.get_config()
    values = {key: reading[key.partition('.')[0]][key.partition('.')[2]] for key in READING}
    return all(_listed(settings.get(key, value)) == _listed(value) for key, value in values.items())


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def number(printed: str) -> Fraction | None:
    """'90.90' or '93%' as it stands; None for what is not a number, such as '-' or '9 3.34 90'."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)%?', printed)
    return Fraction(found[1]) if found else None


@functools.cache
def span(printed: str) -> tuple[Fraction, Fraction]:
    """Low and high of the values that are printed so, rounded or truncated: low <= value < high."""
    unit = Fraction(1, 10 ** len(printed.rstrip('%').partition('.')[2]))
    return number(printed) - unit / 2, number(printed) + unit


def fits(printed: str, value: Fraction | None) -> bool:
    """Whether a value may be printed so; a text that is no number fits an undefined value, None, and nothing else."""
    if number(printed) is None or value is None:
        return number(printed) is value
    low, high = span(printed)
    return low <= value < high


def recompute(tp: int, tn: int, fp: int, fn: int) -> dict[str, Fraction | None]:
    """METRICS in per cent, exact; None where the denominator is 0."""
    parts = {
        'accuracy': (tp + tn, tp + tn + fp + fn),
        'precision': (tp, tp + fp),
        'sensitivity': (tp, tp + fn),
        'specificity': (tn, tn + fp),
        'f1': (2 * tp, 2 * tp + fp + fn),
    }
    return {name: Fraction(100 * hits, total) if total else None for name, (hits, total) in parts.items()}


def possible_matrices() -> Iterator[Matrix]:
    """All confusion matrices of the 10 + 10 test images."""
    for tp, tn in itertools.product(range(TEST_PER_CLASS + 1), repeat=2):
        yield tp, tn, TEST_PER_CLASS - tn, TEST_PER_CLASS - tp


def closest(row: PaperRow) -> Matrix:
    """The matrix of 10 + 10 images that gives the most of a row's printed metrics, the first of several."""
    return max(possible_matrices(), key=lambda each: sum(_fitting(row, each).values()))


def _fitting(row: PaperRow, counts: Matrix) -> dict[str, bool]:
    return {name: fits(getattr(row, name), value) for name, value in recompute(*counts).items()}


def misprints(row: PaperRow) -> dict[str, Fraction | None]:
    """Metric -> per cent that the counts give, where it is printed otherwise; counts: as printed, or `closest`."""
    counts = row.counts or closest(row)
    wrong = [name for name, right in _fitting(row, counts).items() if not right]
    return {name: recompute(*counts)[name] for name in wrong}


def of_test_images(row: PaperRow) -> bool:
    """Whether the printed counts, if any, are of 10 + 10 images."""
    return row.counts is None or row.counts in possible_matrices()


def shown(value: Fraction | None) -> str:
    """With up to two decimals; 'undefined' for None."""
    return 'undefined' if value is None else f'{float(value):.2f}'.rstrip('0').rstrip('.')


def label(name: str) -> str:
    """How a field is called in a sentence."""
    return NAMES.get(name, name)


def matrix(counts: Matrix) -> str:
    """'TP 10, TN 9, FP 1, FN 0'."""
    return ', '.join(f'{label(name)} {count}' for name, count in zip(COUNTS, counts, strict=True))
