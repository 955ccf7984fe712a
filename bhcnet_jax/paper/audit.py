"""What cannot be right in BHCNet (Anjum and Oberoi, 2022): its metrics recomputed, its places compared.

    python -m bhcnet_jax.paper.audit

A metric is wrong where neither rounding nor truncation of the value that the counts give leads to the printed digits.
Shares of few images take few values, so that a percentage alone can be impossible (the GRIM test: Brown and Heathers,
The GRIM test, Social Psychological and Personality Science 8(4), 2017). What no computation finds stands in REMARKS.
"""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction

from bhcnet_jax.errors import Parser
from bhcnet_jax.paper import bhcnet
from bhcnet_jax.paper.bhcnet import Claim, EpochRow, Paper, PaperRow, StudyRow, fits, label, number, shown, span

MOST_IMAGES = 1000  # as many as the paper ever trains on


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that cannot be right.

    Attributes:
      place: table and row, or section.
      name: what is printed there: a metric, a count, or in words.
      printed: as printed.
      recomputed: what it should be by the rest of the print.
      problem: what is wrong, in one sentence.
    """

    place: str
    name: str
    printed: str
    recomputed: str
    problem: str


REMARKS = (
    Finding('section V.A', 'table 3', 'six experiments by epochs', 'table 1',
            'Table 3 has four rows and no epochs; the six experiments by epochs are in table 1.'),
    Finding('section V.A', 'training time', '21 minutes against 22.4 minutes per epoch', '',
            'The whole training of one model is compared with one epoch of another.'),
    Finding('section V.B', 'test images', 'an imbalanced test set', '10 + 10 images',
            'The text has the test data imbalanced too, the counts of table 2 are of 10 images of each class.'),
    Finding('section V.C', 'table 3', 'accuracy and loss on train and test data', '',
            'Table 3 has no loss, and one accuracy per model.'),
    Finding('section V.C', 'table 5', 'CNN, CNN + LSTM and CNN + GRU', 'table 3',
            'Table 5 compares BHCNet with other studies; no table has a result of CNN + GRU.'),
    Finding('section V.C', 'table 6', 'comparison with past studies', 'table 5',
            'Table 6 has accuracy and loss by epoch; the past studies are in table 5.'),
    Finding('tables', 'table 4', 'tables 1, 2, 3, 5 and 6', '', 'There is no table 4.'),
)  # fmt: skip


def audit(printed: Paper = bhcnet.PAPER) -> list[Finding]:
    """All that a computation finds: in the tables in their order, then in the text and in the numbers of images."""
    found: list[Finding] = []
    for row in printed.rows:
        found += [*_counts(row), *_metrics(row)]
    for study in printed.studies:
        found += _study(study)
    for epoch in printed.epochs:
        found += _share(epoch, printed.images['test'])
    for claim in (*_repeated(printed), *printed.claims):
        found += _claim(claim, printed)
    return [*found, *_references(printed), *_losses(printed), *_accuracies(printed), *_images(printed)]


def _counts(row: PaperRow) -> Iterator[Finding]:
    if bhcnet.of_test_images(row):
        return
    fitting = [each for each in bhcnet.possible_matrices() if not bhcnet.misprints(_with(row, each))]
    these = f' The printed metrics are those of {" or ".join(map(bhcnet.matrix, fitting))}.' if fitting else ''
    images = f'{row.tp + row.fn} + {row.tn + row.fp}'
    problem = f'The counts are of {images} images, the test set has 10 + 10.{these}'
    yield Finding(row.place, 'counts', bhcnet.matrix(row.counts), ' or '.join(map(bhcnet.matrix, fitting)), problem)


def _with(row: PaperRow, counts: bhcnet.Matrix) -> PaperRow:
    return dataclasses.replace(row, **dict(zip(bhcnet.COUNTS, counts, strict=True)))


def _metrics(row: PaperRow) -> Iterator[Finding]:
    for name, value in bhcnet.misprints(row).items():
        printed = getattr(row, name)
        if number(printed) is None:
            problem = f'The {label(name)} is not a number.'
        elif row.counts:
            problem = f'The printed counts give {shown(value)}.'
        else:
            counts = bhcnet.matrix(bhcnet.closest(row))
            problem = f'The row\'s other metrics are those of {counts}, which gives {shown(value)}.'
        yield Finding(row.place, name, printed, shown(value), problem)


def _study(row: StudyRow) -> Iterator[Finding]:
    """Without counts: F1 is the harmonic mean of precision and sensitivity; accuracy is between the two classes'."""
    cells = {name: getattr(row, name) for name in bhcnet.METRICS}
    for name, printed in cells.items():
        if number(printed) is None and printed != '-':
            yield Finding(row.place, name, printed, '', f'The {label(name)} is not a number.')
    spans = {name: span(printed) for name, printed in cells.items() if number(printed) is not None}
    if spans.keys() >= {'f1', 'precision', 'sensitivity'}:
        ends = [2 * p * s / (p + s) for p, s in zip(spans['precision'], spans['sensitivity'], strict=True)]
        if _apart(spans['f1'], ends):
            p, s = number(row.precision), number(row.sensitivity)
            problem = 'It is not the harmonic mean of the printed precision and sensitivity.'
            yield Finding(row.place, 'f1', row.f1, shown(2 * p * s / (p + s)), problem)
    if spans.keys() >= {'accuracy', 'sensitivity', 'specificity'}:
        both = spans['sensitivity'] + spans['specificity']
        if _apart(spans['accuracy'], (min(both), max(both))):
            problem = 'It is not between the printed sensitivity and specificity, of which it is a mean.'
            recomputed = ' to '.join(map(shown, sorted((number(row.sensitivity), number(row.specificity)))))
            yield Finding(row.place, 'accuracy', row.accuracy, recomputed, problem)


def _apart(one: tuple[Fraction, Fraction], other: tuple[Fraction, Fraction]) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]


def _share(row: EpochRow, images: int) -> Iterator[Finding]:
    nearest = _nearest(row.accuracy, images)
    if not fits(row.accuracy, nearest):
        problem = f'It cannot be of the {images} test images; the nearest share of them is {shown(nearest)}.'
        yield Finding(row.place, 'accuracy', row.accuracy, shown(nearest), problem)


def _nearest(printed: str, images: int) -> Fraction:
    """The share of so many images, in per cent, that is printed so, or else the nearest."""
    lowest = Fraction(100 * math.ceil(span(printed)[0] * images / 100), images)
    return lowest if fits(printed, lowest) else Fraction(100 * round(number(printed) * images / 100), images)


def _repeated(printed: Paper) -> Iterator[Claim]:
    """What a table repeats of another one, as claims about that one."""
    for here, there in printed.repeats.items():
        row = printed.find(here)
        for name in bhcnet.METRICS:
            yield Claim(row.place, there, name, getattr(row, name).rstrip('%'))


def _claim(claim: Claim, printed: Paper) -> Iterator[Finding]:
    row = printed.find(claim.about)
    cell = str(getattr(row, claim.name))
    if not _agree(claim.printed, cell):
        problem = f'{row.place[0].upper()}{row.place[1:]}, prints {cell} for the same {label(claim.name)}.'
        yield Finding(claim.place, claim.name, claim.printed, cell, problem)
    elif claim.name == 'accuracy' and isinstance(row, PaperRow):
        nearest = _nearest(claim.printed, printed.images['test'])
        if not fits(claim.printed, nearest):
            problem = f'It is no share of {printed.images["test"]} test images; {row.place} prints {cell}.'
            yield Finding(claim.place, claim.name, claim.printed, shown(nearest), problem)


def _agree(one: str, other: str) -> bool:
    """Whether the text with fewer digits may be the other's value, rounded or truncated."""
    if number(one) is None or number(other) is None:
        return one == other
    finer, coarser = sorted((one.rstrip('%'), other.rstrip('%')), key=lambda text: -len(text.partition('.')[2]))
    return fits(coarser, number(finer))


def _references(printed: Paper) -> Iterator[Finding]:
    cited = [row.row for row in printed.studies if row.row.startswith('[')]
    missing = [text for text in cited if int(text.strip('[]')) > printed.references]
    if missing:
        last = printed.references
        problem = f'The list of references ends at [{last}].'
        yield Finding('table 5', 'references', ', '.join(missing), f'[1] to [{last}]', problem)


def _losses(printed: Paper) -> Iterator[Finding]:
    wrong = [row.loss for row in printed.epochs if row.loss.endswith('%')]
    if wrong:
        text = ' and '.join(claim.printed for claim in printed.claims if claim.name == 'loss')
        problem = 'A loss is no percentage; section VI prints it without the sign.'
        yield Finding('table 6', 'loss', ', '.join(wrong), text, problem)


def _accuracies(printed: Paper) -> Iterator[Finding]:
    """Section VI never says on which images its accuracies are."""
    texts = [claim.printed for claim in printed.claims if claim.about[0] == 6 and claim.name == 'accuracy']

    def possible(images: int) -> bool:
        return all(fits(text, _nearest(text, images)) for text in texts)

    if not any(map(possible, printed.images.values())):
        smallest = next(filter(possible, range(1, MOST_IMAGES + 1)), None)
        known = ', '.join(map(str, sorted(printed.images.values())))
        problem = f'No number of images in the paper ({known}) gives all of these shares; {smallest} is the smallest.'
        yield Finding('section VI', 'accuracy', ', '.join(texts), f'{smallest} images', problem)


def _images(printed: Paper) -> Iterator[Finding]:
    images = printed.images
    rest = images['all'] - images['test']
    if images['imbalanced'] > rest:
        problem = f'The split leaves {rest} images, and the text does not say where the others come from.'
        yield Finding('section V.B', 'training images', str(images['imbalanced']), str(rest), problem)
    if images['train'] + images['test'] == images['all']:
        problem = 'Section IV.D augments validation images, but the split of section IV.C leaves none.'
        yield Finding('section IV.D', 'validation images', 'augmented', '0', problem)
    if images['train'] + images['test'] > images['all']:
        problem = f'Training and test images are more than the {images["all"]} that there are.'
        yield Finding('section IV.C', 'training images', str(images['train']), str(rest), problem)


def main() -> None:
    """The command line: prints a line for each finding."""
    Parser(
        prog='python -m bhcnet_jax.paper.audit',
        description=__doc__.splitlines()[0],
        epilog='It reads no file: what the paper prints is in bhcnet_jax/paper/bhcnet.py.',
    ).parse_args()
    for each in (*audit(), *REMARKS):
        arrow = f' -> {each.recomputed}' if each.recomputed else ''
        print(f'{each.place}, {label(each.name)}: {each.printed}{arrow}. {each.problem}')


if __name__ == '__main__':
    main()
