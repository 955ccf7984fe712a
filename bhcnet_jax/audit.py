"""What could let a network cheat on an image set: duplicates, and shortcuts in size, format and grey level.

    python -m bhcnet_jax.audit [--name=head_ct|folder|phantom|auto] [--dir=DIR] [--out=audit.json]
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.datasets.shortcuts import CLASSES, shortcuts
from bhcnet_jax.errors import UserError
from bhcnet_jax.files import write_json
from bhcnet_jax.plan import groups


def audit(image_set: ImageSet, grouping: groups.Grouping) -> dict[str, Any]:
    """Everything found, ready for JSON: no nan, plain numbers and strings.

    Keys: mark ('PHANTOM' for synthetic images, else ''), dataset, fingerprint, images, hemorrhage, warnings (lines),
    reasons (number of pairs by reason), groups (ids of every group of two or more), pairs (two ids, labels, reason,
    similarity; see groups.Pair), apart (the same of look-alikes that are not kept together), conflicts (pairs of exact
    or near duplicates with different labels), modes (files of each class by Pillow's mode), coloured (files of each
    class whose red, green and blue differ anywhere) and shortcuts (see `shortcuts`).
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
    modes = collections.Counter(zip(image_set.modes, labels.tolist(), strict=True))
    return {
        'mark': 'PHANTOM' if image_set.synthetic else '',
        'dataset': image_set.name,
        'fingerprint': image_set.fingerprint,
        'images': len(ids),
        'hemorrhage': int(labels.sum()),
        'warnings': list(grouping.warnings),
        'reasons': dict(collections.Counter(pair['reason'] for pair in pairs)),
        'groups': [group for group in members.values() if len(group) > 1],
        'pairs': pairs,
        'apart': apart,
        'conflicts': sum(pair['reason'] != 'published' and len(set(pair['labels'])) == 2 for pair in pairs),
        'coloured': {
            name: int(image_set.coloured[labels == label].sum()) for label, name in enumerate(CLASSES)
        },
        'modes': {
            mode: {'normal': modes[mode, 0], 'hemorrhage': modes[mode, 1]}
            for mode in sorted(set(image_set.modes))
        },
        'shortcuts': shortcuts(image_set),
    }


def report(found: dict[str, Any], console: Console) -> None:
    """Prints what `audit` found; every title begins with the mark."""
    mark = f'{found["mark"]} ' if found['mark'] else ''
    largest = max(map(len, found['groups']), default=0)
    console.print(
        f'{mark}{found["dataset"]}: {found["images"]} images, {found["hemorrhage"]} with a hemorrhage\n'
        f'fingerprint {found["fingerprint"]}\n'
        f'{len(found["groups"])} groups of images that must stay together, the largest of {largest}; '
        f'{found["conflicts"]} pairs of duplicates with different labels.\n'
        'Other slices of one patient that look different are not found.'
    )
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
        table.add_row(pair['a'], pair['b'], labels, pair['reason'], f'{pair["similarity"]:.3f}')
    return table


def _mode_table(found: dict[str, Any], mark: str) -> Table:
    table = Table('mode', 'normal', 'hemorrhage', title=f'{mark}Colour modes')
    for mode, classes in found['modes'].items():
        table.add_row(mode, str(classes['normal']), str(classes['hemorrhage']))
    table.add_row('with coloured pixels', *(str(found['coloured'][name]) for name in CLASSES))
    return table


def _shortcut_table(found: dict[str, Any], mark: str) -> Table:
    title = f'{mark}Shortcuts: AUC of one number, max(a, 1 - a), n = {found["images"]}; medians'
    table = Table('feature', 'AUC', '95 % interval', 'higher in', 'normal', 'hemorrhage', title=title)
    for shortcut in found['shortcuts']:
        low, high = shortcut['low'], shortcut['high']
        table.add_row(
            shortcut['feature'],
            _text(shortcut['auc']),
            '-' if low is None else f'{low:.2f} to {high:.2f}',
            shortcut['higher_in'],
            _text(shortcut['normal']),
            _text(shortcut['hemorrhage']),
        )
    return table


def _text(number: float | None) -> str:
    return '-' if number is None else f'{number:.4g}'


def main() -> None:
    """The command line: prints the audit and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--name', default='auto', choices=('head_ct', 'folder', 'phantom', 'auto'))
    parser.add_argument('--dir', default='', help='where the images are; default as for training')
    parser.add_argument('--out', default='audit.json', type=Path, help='the same as JSON')
    flags = parser.parse_args()
    try:
        image_set = input_pipeline.load(ConfigDict({'name': flags.name, 'dir': flags.dir, 'image_size': 128}))
        found = audit(image_set, groups.find_groups(image_set))
        write_json(flags.out, found)
    except (UserError, OSError) as error:
        sys.exit(f'error: {error}')
    report(found, Console())
    print(f'Written to {flags.out}')


if __name__ == '__main__':
    main()
