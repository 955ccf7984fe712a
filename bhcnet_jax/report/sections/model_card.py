"""Model card and checklists, filled in from the runs; TODO(author) where no file of a run can tell."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bhcnet_jax.report import checklists
from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Section, Table

TODO = 'TODO(author)'
SCORES = {'accuracy': 'accuracy', 'AUC': 'auc', 'Brier score': 'brier'}


def model_card(evidence: Evidence) -> Section:
    """Shows the best network's model card, and the checklists CLAIM and TRIPOD+AI as far as runs answer them."""
    todo = (
        'TODO(author) marks what no file of a run can tell. Items are in short; before submission compare them with '
        'the checklists as published.'
    )
    facts = _facts(evidence, evidence.best('network') or evidence.recipes[0])
    heads = ('item', 'about', 'answer')
    return Section('Model card and checklists', [
        todo,
        Table('model-card', 'Model card', ('what', 'answer'), _card(facts)),
        Table('claim', 'CLAIM, 2024 update', heads, _filled(checklists.CLAIM, facts)),
        Table('tripod-ai', 'TRIPOD+AI, 2024', heads, _filled(checklists.TRIPOD, facts)),
    ])  # fmt: skip


def _filled(items: Mapping[str, tuple[str, str]], facts: Mapping[str, str]) -> list[list[str]]:
    return [[number, about, facts[key] if key else TODO] for number, (about, key) in items.items()]


def _card(facts: Mapping[str, str]) -> list[list[str]]:
    keys = {
        'model': 'model', 'input': 'preprocessing', 'output': 'output', 'training data': 'data', 'training': 'training',
        'evaluation': 'split', 'performance': 'performance', 'intended use': 'use', 'limits': 'limits',
        'how to get it again': 'rerun',
    }  # fmt: skip
    return [
        *([name, facts[key]] for name, key in keys.items()),
        *([name, TODO] for name in ('developer and contact', 'population and sites', 'ethical considerations')),
    ]


def _facts(evidence: Evidence, best: Recipe) -> dict[str, str]:
    counts = evidence.data.get('images')
    labels = best.pooled.labels
    tested = 'see "On other images"' if evidence.elsewhere else 'no external test'
    images = ' + '.join(f'{count} {name}' for name, count in counts.items()) if counts else f'{len(labels)} scored'
    return {
        **_of_data(evidence, best, images),
        **_of_model(evidence, best),
        **_of_evaluation(best),
        'external': '; '.join(map(_external, evidence.elsewhere)) or f'none; {TODO}',
        'answer': 'see "Answer"',
        'failures': '"Misread images" lists every one',
        'rerun': '"How to rerun every number": command, code, data fingerprint, hardware, time of each run directory',
        'availability': f'code: bhcnet_jax, Apache-2.0; weights: checkpoints/ of each run, where kept; data: {TODO}',
        'use': 'research only: not a medical device, nothing here may be used for a diagnosis',
        'limits': (
            f'{len(labels)} images, one set, {tested}; what shortcuts tell is under "Audits"; the best recipe '
            'was chosen by the numbers that are shown for it'
        ),
    }


def _external(found: Mapping[str, Any]) -> str:
    data = found['data']
    return f'{found["model"]["name"]} on {data["images"]} images of {data["dataset"]}, see "On other images"'


def _of_data(evidence: Evidence, best: Recipe, images: str) -> dict[str, str]:
    groups = evidence.data.get('groups')
    disjoint = f'groups of look-alike images ({len(groups)} of two or more); patients are not known' if groups else (
        'images; patients are not known')  # fmt: skip
    return {
        'kind': 'a neural network that classifies images',
        'aim': 'accuracy of the recipes, its uncertainty, and whether it is more than shortcuts give (see "Answer")',
        'design': f'retrospective, on labelled images that were there before; more: {TODO}',
        'data': f'{evidence.dataset}, {images} images, fingerprint {evidence.fingerprint[:12]}',
        'all_images': f'{len(best.pooled.labels)} images are scored, of {images} in the set',
        'missing': 'no image lacks a label; there are no other variables',
        'labels': f'the label of each image as published with the set; how it came about: {TODO}',
        'predictors': 'the grey values of one image; baselines: also size and file size (see "Leaderboard")',
        'disjoint': disjoint,
        'size': f'the {images} images that the set has; no calculation was made',
        'patients': f'patients are not known; images: {images}; characteristics: {TODO}',
    }


def _of_model(evidence: Evidence, best: Recipe) -> dict[str, str]:
    first, told, positive = best.trials.iloc[0], best.settings, evidence.classes[1]
    shown = ', '.join(f'{key.partition(".")[2]} {value}' for key, value in told.items() if key.startswith('model.'))
    trained = ', '.join(f'{key} {value}' for key, value in told.items() if key.startswith(('optimizer.', 'augment.')))
    size = told.get('dataset.image_size')
    resized = f'resized to {size} x {size} pixels (bilinear, aspect ratio not kept), ' if size else ''
    several, slices = len(best.pooled.seeds) > 1, told.get('dataset.slices', 1)
    volumes = f'volumes of {slices} slices, ' if slices > 1 else ''
    equalised = 'cropped to the head, of one resolution, flat histogram, ' if told.get('dataset.equalise') else ''
    home = pathlib.Path(best.trials.file.iloc[0]).parent
    start = next((start for run in evidence.run_dirs if run.path == home for start in run.starts[-1:]), {})
    versions = {name: start[name] for name in ('python',) if name in start} | start.get('packages', {})
    software = [f'{name} {version}' for name, version in versions.items()]
    phases = first.phases.replace('+', ' then ') if not pd.isna(first.phases) else 'one fit'
    return {
        'model': f'{best.label}: {first.model}' + (f' ({shown})' if shown else ''),
        'preprocessing': f'grey, {volumes}{equalised}{resized}scaled to [0, 1]',
        'software': ', '.join(software) or 'not recorded in env.json',
        'initial': 'random, from the seed of the trial; no pretrained weights' + (
            '; phase phantom is on drawn heads, before any image of the set' if phases.startswith('phantom') else ''
        ),
        'training': f'phases {phases}, number of seeds {len(best.pooled.seeds)}' + (f'; {trained}' if trained else ''),
        'choice': 'the weights after the last epoch; none was chosen by the test part. Recipes: see "Leaderboard"',
        'ensemble': 'over seeds, under "Leaderboard"; all other metrics are means over seeds' if several else 'none',
        'updating': 'none',
        'output': f'probability of {positive} by a logistic output; 0.5 and more is called {positive}',
        'imbalance': f'phases {phases}; classes of the set as in item 5a',
    }


def _of_evaluation(best: Recipe) -> dict[str, str]:
    first = best.trials.iloc[0]
    scheme = {'kfold': f'{first.folds}-fold cross-validation', 'holdout': f'one split, 1/{first.folds} for testing'}
    diagnostic = ', '.join(f'{name} {best.number(name)}' for name in ('sensitivity', 'specificity', 'precision'))
    split = scheme.get(first.scheme, 'not recorded')
    return {
        'split': f'{split}, stratified by class; folds done: {best.folds_done}; augmentation after the split only',
        'metrics': 'accuracy, sensitivity, specificity, AUC, precision, F1, log-loss, Brier score, calibration, '
        'net benefit',
        'uncertainty': 'bootstrap over groups of images, Wilson, McNemar mid-p with Holm; spread over seeds apart',
        'robustness': 'spread over seeds and folds (see "Training"), ablations (see "Comparisons and ablations")',
        'internal': f'out-of-fold predictions of {len(best.pooled.labels)} images of the same set',
        'performance': ', '.join(f'{name} {best.number(key)}' for name, key in SCORES.items()),
        'diagnostic': diagnostic,
        'by_fold': 'accuracy by fold: see "Training"',
    }
