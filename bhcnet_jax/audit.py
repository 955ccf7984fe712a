"""What could let a network cheat on an image set: duplicates, and shortcuts in size, format and grey level.

    python -m bhcnet_jax.audit [--name=head_ct|folder|phantom|auto] [--dir=DIR] [--columns=FILE,LABEL]
        [--positive=CLASS] [--out=audit.json]

Without --name it finds out what lies in DIR.
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.datasets.shortcuts import shortcuts
from bhcnet_jax.errors import Parser, UserError, fail
from bhcnet_jax.files import write_json
from bhcnet_jax.plan import groups


def audit(image_set: ImageSet, grouping: groups.Grouping) -> dict[str, Any]:
    """Everything found, ready for JSON: no nan, plain numbers and strings.

    Keys: mark ('PHANTOM' for synthetic images, else ''), dataset, fingerprint, images, classes (images by the class's
    name, the negative one first), warnings (lines), reasons (number of pairs by reason), groups (ids of every group of
    two or more), pairs (two ids, labels, reason, similarity; see groups.Pair), apart (the same of look-alikes that are
    not kept together), conflicts (pairs of exact or near duplicates with different labels), modes (files of each class
    by Pillow's mode), coloured (files of each class whose red, green and blue differ anywhere) and shortcuts (see
    `shortcuts`).
    """
    ids, labels = image_set.ids, image_set.labels
    pairs, apart = (
        [
            {
                'a': ids[pair.a],
                'b': ids[pair.b],
                'labels': [int(labels[pair.a]), int(labels[pair.b])],
                'reason': pair.reason,
                'similarity': round(pair.similarity, 4),
            }
            for pair in kind
        ]
        for kind in (grouping.pairs, grouping.apart)
    )
    members = collections.defaultdict(list)
    for image_id, group in zip(ids, grouping.groups.tolist(), strict=True):
        members[group].append(image_id)
    return {
        'mark': 'PHANTOM' if image_set.synthetic else '',
        'dataset': image_set.name,
        'fingerprint': image_set.fingerprint,
        'images': len(ids),
        'classes': _by_class(image_set, np.ones(len(ids), bool)),
        'warnings': list(grouping.warnings),
        'reasons': dict(collections.Counter(pair['reason'] for pair in pairs)),
        'groups': [group for group in members.values() if len(group) > 1],
        'pairs': pairs,
        'apart': apart,
        'conflicts': sum(pair['reason'] != 'published' and len(set(pair['labels'])) == 2 for pair in pairs),
        'coloured': _by_class(image_set, image_set.coloured),
        'modes': {
            mode: _by_class(image_set, np.array(image_set.modes) == mode) for mode in sorted(set(image_set.modes))
        },
        'shortcuts': shortcuts(image_set),
    }


def _by_class(image_set: ImageSet, chosen: np.ndarray) -> dict[str, int]:
    """How many of the chosen images (bool [N]) each class has, by its name."""
    return {name: int(chosen[image_set.labels == label].sum()) for label, name in enumerate(image_set.class_names)}


def report(found: dict[str, Any], console: Console) -> None:
    """Prints what `audit` found; every title begins with the mark."""
    mark = f'{found["mark"]} ' if found['mark'] else ''
    largest = max(map(len, found['groups']), default=0)
    classes = ', '.join(f'{count} {name}' for name, count in found['classes'].items())
    # Names are data: as a Text they are shown as they are, square brackets included.
    console.print(Text(
        f'{mark}{found["dataset"]}: {found["images"]} images, {classes}\n'
        f'fingerprint {found["fingerprint"]}\n'
        f'{len(found["groups"])} groups of images that must stay together, the largest of {largest}; '
        f'{found["conflicts"]} pairs of duplicates with different labels.\n'
        'Other slices of one patient that look different are not found.'
    ))  # fmt: skip
    for warning in found['warnings']:
        console.print(f'warning: {warning}', markup=False)
    counts = ', '.join(f'{count} {reason}' for reason, count in found['reasons'].items()) or 'none'
    console.print(_pair_table(found['pairs'], f'{mark}Pairs: {counts}'))
    if found['apart']:
        title = f'{mark}Look-alikes that are not kept together: {len(found["apart"])}'
        console.print(_pair_table(found['apart'], title))
    for table in (_mode_table(found, mark), _shortcut_table(found, mark)):
        console.print(table)


def _pair_table(pairs: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table('image', 'image', 'labels', 'reason', 'similarity', title=title)
    for pair in sorted(pairs, key=lambda pair: -pair['similarity']):
        labels = ' '.join(map(str, pair['labels']))
        table.add_row(Text(pair['a']), Text(pair['b']), labels, pair['reason'], f'{pair["similarity"]:.3f}')
    return table


def _mode_table(found: dict[str, Any], mark: str) -> Table:
    table = Table('mode', *_headings(found), title=f'{mark}Colour modes')
    for mode, classes in found['modes'].items():
        table.add_row(mode, *map(str, classes.values()))
    table.add_row('with coloured pixels', *map(str, found['coloured'].values()))
    return table


def _shortcut_table(found: dict[str, Any], mark: str) -> Table:
    title = f'{mark}Shortcuts: AUC of one number, max(a, 1 - a), n = {found["images"]}; medians'
    table = Table('feature', 'AUC', '95 % interval', 'higher in', *_headings(found), title=title)
    for shortcut in found['shortcuts']:
        low, high = shortcut['low'], shortcut['high']
        table.add_row(
            shortcut['feature'],
            _text(shortcut['auc']),
            '-' if low is None else f'{low:.2f} to {high:.2f}',
            Text(shortcut['higher_in']),
            *map(_text, shortcut['medians']),
        )
    return table


def _headings(found: dict[str, Any]) -> list[Column]:
    return [Column(Text(name)) for name in found['classes']]


def _text(number: float | None) -> str:
    return '-' if number is None else f'{number:.4g}'


def main() -> None:
    """The command line: prints the audit and writes it as JSON."""
    parser = Parser(
        prog='python -m bhcnet_jax.audit',
        description=__doc__.splitlines()[0],
        epilog='Example: python -m bhcnet_jax.audit --dir=~/Downloads/archive.zip',
    )
    parser.add_argument('--name', default='auto', choices=('head_ct', 'folder', 'phantom', 'auto'))
    parser.add_argument('--dir', default='', help='where the images are; default as for training')
    parser.add_argument('--columns', default='', help='of the csv, as config.dataset.columns')
    parser.add_argument('--positive', default='', help='the positive class, as config.dataset.positive')
    parser.add_argument('--out', default='audit.json', type=Path, help='the same as JSON; default: audit.json')
    flags = parser.parse_args()
    try:
        names = ('name', 'dir', 'columns', 'positive')
        dataset = ConfigDict({'image_size': 128, **{name: getattr(flags, name) for name in names}})
        image_set = input_pipeline.load(dataset)
        found = audit(image_set, groups.find_groups(image_set))
        write_json(flags.out, found)
    except (UserError, OSError) as error:
        fail(error)
    report(found, Console())
    print(f'Written to {flags.out}')


if __name__ == '__main__':
    main()
