"""Audits of the data and of the paper."""

import shlex

import pandas as pd

from bhcnet_jax.datasets import shortcuts
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.paper import audit
from bhcnet_jax.paper.bhcnet import label
from bhcnet_jax.report.evidence import Evidence, crossing
from bhcnet_jax.report.page import Block, Number, Section, Table


def audits(evidence: Evidence, images: ImageSet | str) -> Section:
    """Shows what leaks and what shortcuts tell in the data, and what cannot be right in the paper.

    images: or why there are none.
    """
    blocks = [*_leakage(evidence), *_shortcuts(evidence, images)]
    return Section('Audits', [*blocks, _paper()] if evidence.is_of_paper else blocks)


def _paper() -> Table:
    found = audit.audit()
    rows = [
        [each.place, label(each.name), each.printed, each.recomputed, each.problem]
        for each in (*found, *audit.REMARKS)
    ]
    read = len(audit.REMARKS)
    caption = f'What cannot be right in the paper ({len(found)} findings by computation, {read} by reading)'
    heads = ('place', 'what', 'printed', 'recomputed', 'problem')
    return Table('paper-audit', caption, heads, rows, is_of_images=False)


def _leakage(evidence: Evidence) -> list[Block]:
    data = evidence.data
    if 'groups' not in data:
        command = evidence.command('python -m bhcnet_jax.main --config=balanced')
        return ['Missing: groups of look-alike images, so that intervals take every image for its own. They are in '
                f'data.json of a run directory: `{command}`']  # fmt: skip
    reasons = pd.Series([pair['reason'] for pair in data['pairs']], dtype=object).value_counts()
    pairs = ', '.join(f'{count} {reason}' for reason, count in reasons.items()) or 'none'
    label_of = {image: bool(mark) for each in evidence.recipes
                for image, mark in zip(each.pooled.image_ids, each.pooled.labels, strict=True)}  # fmt: skip
    mixed = sum(len({label_of[image] for image in group if image in label_of}) > 1 for group in data['groups'])
    crossed = sum(map(crossing, evidence.recipes))
    rows: list[list[str | Number]] = [
        [f'images, {" + ".join(evidence.classes)}', ' + '.join(map(str, data['images'].values()))],
        ['pairs of look-alike images', pairs],
        ['groups of two or more images', Number(len(data['groups']), style='whole')],
        ['images in the largest group', Number(max(map(len, data['groups']), default=1), style='whole')],
        ['groups with both labels', Number(mixed, style='whole')],
        ['groups with images in two test parts, over all recipes', Number(crossed, style='whole')],
    ]
    note = 'Images of one patient that do not look alike are not found here.'
    return [Table('leakage', 'Leakage audit of the images', ('what', 'found'), rows, note)]


def _shortcuts(evidence: Evidence, images: ImageSet | str) -> list[Block]:
    blocks: list[Block] = []
    if isinstance(images, str):
        flags = {'dir': 'DIR', **evidence.data_flags}
        command = shlex.join(f'--{key}={value}' for key, value in flags.items() if key != 'label')
        blocks.append(f'Missing: how well single numbers of a file tell the classes apart. {images} '
                      f'`python -m bhcnet_jax.audit {command}`')  # fmt: skip
    else:
        rows = [
            [each['feature'], _auc(each), each['higher_in'] or '-'] for each in shortcuts.shortcuts(images)
        ]
        note = 'The AUC has no direction, so that 0.5 is its least value. Intervals (DeLong) are over single images.'
        heads = ('number', 'AUC', 'higher in')
        blocks.append(Table('shortcuts', 'How well one number of a file tells the classes apart', heads, rows, note))
    baselines = [[each.label, each.number('accuracy'), each.number('auc')]
                 for each in evidence.recipes if each.kind == 'shortcut']  # fmt: skip
    if baselines:
        caption = 'Shortcut baselines: random forests that know size and grey levels of an image, not what it shows'
        blocks.append(Table('shortcut-baselines', caption, ('baseline', 'accuracy', 'AUC'), baselines))
    return blocks


def _auc(shortcut: dict[str, float | None]) -> Number:
    values = (shortcut[name] for name in ('auc', 'low', 'high'))
    return Number(*(float('nan') if value is None else value for value in values), shortcut['n'], 'plain')
