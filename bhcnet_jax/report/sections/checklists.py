"""The model card and two reporting checklists, filled in from the runs, TODO(author) where no file can tell.

CLAIM: Tejani et al., Radiology: Artificial Intelligence 6(4), 2024. TRIPOD+AI: Collins et al., BMJ 385, 2024. Items are
in our own few words; their numbers are those of the checklists, which say what each of them means.
"""

import pathlib
from collections.abc import Mapping

import pandas as pd

from bhcnet_jax.report.evidence import Evidence, Recipe
from bhcnet_jax.report.page import Table

TODO = 'TODO(author)'
SCORES = {'accuracy': 'accuracy', 'AUC': 'auc', 'Brier score': 'brier'}

# number -> (item, where its answer is: a key of `_facts`, or '' for the author)
CLAIM = {
    '1': ('names itself as a study of AI, and of which kind', 'kind'),
    '2': ('structured abstract', ''),
    '3': ('background, intended use and role', ''),
    '4': ('aims and hypotheses', 'aim'),
    '5': ('prospective or retrospective', 'design'),
    '6': ('goal of the study', 'aim'),
    '7': ('sources of data', 'data'),
    '8': ('who is in and who is out, where and when', ''),
    '9': ('preprocessing', 'preprocessing'),
    '10': ('choice of parts of the data', 'all_images'),
    '11': ('de-identification', ''),
    '12': ('missing data', 'missing'),
    '13': ('how images were acquired', ''),
    '14': ('what the reference standard is', 'labels'),
    '15': ('why this reference standard', ''),
    '16': ('who annotated', ''),
    '17': ('annotation of the test set', ''),
    '18': ('agreement of and within readers', ''),
    '19': ('how data were parted', 'split'),
    '20': ('level at which parts are disjoint', 'disjoint'),
    '21': ('intended sample size', 'size'),
    '22': ('the model', 'model'),
    '23': ('software', 'software'),
    '24': ('initial weights', 'initial'),
    '25': ('training', 'training'),
    '26': ('how the final model was chosen', 'choice'),
    '27': ('ensembles', 'ensemble'),
    '28': ('metrics', 'metrics'),
    '29': ('significance and uncertainty', 'uncertainty'),
    '30': ('robustness', 'robustness'),
    '31': ('explainability', ''),
    '32': ('evaluation on internal data', 'internal'),
    '33': ('testing on external data', 'external'),
    '34': ('registration of a trial', ''),
    '35': ('numbers of patients and examinations', 'patients'),
    '36': ('characteristics of patients', ''),
    '37': ('performance with its uncertainty', 'performance'),
    '38': ('diagnostic performance and its precision', 'diagnostic'),
    '39': ('analysis of failures', 'failures'),
    '40': ('limitations', 'limits'),
    '41': ('implications for practice', 'use'),
    '42': ('protocol and further details', 'rerun'),
    '43': ('availability of code, model and data', 'availability'),
    '44': ('funding', ''),
}
TRIPOD = {
    '1': ('title: prediction model, population, outcome', ''),
    '2': ('abstract', ''),
    '3a-c': ('context, target population, known inequalities', ''),
    '4': ('objectives', 'aim'),
    '5a': ('sources of data', 'data'),
    '5b': ('dates of collection', ''),
    '6a-c': ('setting, eligibility, treatments', ''),
    '7': ('preparation of data', 'preprocessing'),
    '8a': ('outcome', 'labels'),
    '8b-c': ('who assessed it, blinded or not', ''),
    '9a-c': ('predictors', 'predictors'),
    '10': ('sample size', 'size'),
    '11': ('missing data', 'missing'),
    '12a': ('use of data for development and evaluation', 'split'),
    '12b': ('handling of predictors', 'preprocessing'),
    '12c': ('type of model and how it was built', 'model'),
    '12d': ('heterogeneity between clusters', 'disjoint'),
    '12e': ('measures of performance', 'metrics'),
    '12f': ('updating of the model', 'updating'),
    '12g': ('how predictions are computed', 'output'),
    '13': ('class imbalance', 'imbalance'),
    '14': ('fairness', ''),
    '15': ('output and threshold', 'output'),
    '16': ('differences between development and evaluation data', 'internal'),
    '17': ('ethics', ''),
    '18a-b': ('funding, conflicts of interest', ''),
    '18c-d': ('protocol, registration', ''),
    '18e': ('sharing of data', 'availability'),
    '18f': ('sharing of code', 'rerun'),
    '19': ('involvement of patients and the public', ''),
    '20a-c': ('participants', 'patients'),
    '21': ('numbers used in development', 'data'),
    '22': ('the full model', 'availability'),
    '23a': ('performance with intervals', 'performance'),
    '23b': ('performance between clusters', 'by_fold'),
    '24': ('results of updating', 'updating'),
    '25': ('interpretation', 'answer'),
    '26': ('limitations', 'limits'),
    '27a': ('poor or missing input', ''),
    '27b': ('expertise that users need', ''),
    '27c': ('next steps', ''),
}


def tables(evidence: Evidence) -> list[Table]:
    """The model card, CLAIM and TRIPOD+AI."""
    facts = _facts(evidence, evidence.best('network') or evidence.recipes[0])
    return [
        Table('model-card', 'Model card', ('what', 'answer'), _card(facts)),
        Table('claim', 'CLAIM, 2024 update', ('item', 'about', 'answer'), _filled(CLAIM, facts)),
        Table('tripod-ai', 'TRIPOD+AI, 2024', ('item', 'about', 'answer'), _filled(TRIPOD, facts)),
    ]


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
    images = f'{counts["normal"]} normal + {counts["hemorrhage"]} hemorrhage' if counts else f'{len(labels)} scored'
    return {
        **_of_data(evidence, best, images),
        **_of_model(evidence, best),
        **_of_evaluation(best),
        'answer': 'section 1',
        'failures': 'section 8 lists every misread image',
        'rerun': 'section 10: command, code, data fingerprint, hardware and time of each run directory',
        'availability': f'code: bhcnet_jax, Apache-2.0; weights: checkpoints/ of each run, where kept; data: {TODO}',
        'use': 'research only: not a medical device, nothing here may be used for a diagnosis',
        'limits': (
            f'{len(labels)} images of unknown patients, one set, no external test; what shortcuts tell is in section '
            '7; the best recipe was chosen by the numbers that are shown for it'
        ),
    }


def _of_data(evidence: Evidence, best: Recipe, images: str) -> dict[str, str]:
    groups = evidence.data.get('groups')
    disjoint = f'groups of look-alike images ({len(groups)} of two or more); patients are not known' if groups else (
        'images; patients are not known')  # fmt: skip
    return {
        'kind': 'a neural network that classifies CT slices',
        'aim': 'accuracy of the recipes, its uncertainty, and whether it is more than shortcuts give (section 1)',
        'design': f'retrospective, on labelled images that were there before; more: {TODO}',
        'data': f'{evidence.dataset}, {images} images, fingerprint {evidence.fingerprint[:12]}',
        'all_images': f'{len(best.pooled.labels)} images are scored, of {images} in the set',
        'missing': 'no image lacks a label; there are no other variables',
        'labels': f'the label of each image as published with the set; how it came about: {TODO}',
        'predictors': 'the grey values of one slice; baselines: also size and file size of the image (section 3)',
        'disjoint': disjoint,
        'size': f'the {images} images that the set has; no calculation was made',
        'patients': f'patients are not known; images: {images}; characteristics: {TODO}',
    }


def _of_model(evidence: Evidence, best: Recipe) -> dict[str, str]:
    first, told = best.trials.iloc[0], best.settings
    shown = ', '.join(f'{key.partition(".")[2]} {value}' for key, value in told.items() if key.startswith('model.'))
    trained = ', '.join(f'{key} {value}' for key, value in told.items() if key.startswith(('optimizer.', 'augment.')))
    size = told.get('dataset.image_size')
    resized = f'resized to {size} x {size} pixels (bilinear, aspect ratio not kept), ' if size else ''
    several = len(best.pooled.seeds) > 1
    equalised = 'cropped to the head, of one resolution, flat histogram, ' if told.get('dataset.equalise') else ''
    home = pathlib.Path(best.trials.file.iloc[0]).parent
    start = next((start for run in evidence.run_dirs if run.path == home for start in run.starts[-1:]), {})
    packages = ', '.join(f'{name} {version}' for name, version in start.get('packages', {}).items())
    phases = first.phases.replace('+', ' then ') if not pd.isna(first.phases) else 'one fit'
    return {
        'model': f'{best.label}: {first.model}' + (f' ({shown})' if shown else ''),
        'preprocessing': f'grey, {equalised}{resized}scaled to [0, 1]',
        'software': f'python {start["python"]}, {packages}' if start else 'not recorded: env.json is missing',
        'initial': 'random, from the seed of the trial; no pretrained weights',
        'training': f'phases {phases}, number of seeds {len(best.pooled.seeds)}' + (f'; {trained}' if trained else ''),
        'choice': 'the weights after the last epoch; none was chosen by the test part. Among recipes: section 3',
        'ensemble': 'over seeds, in section 3; all other metrics are means over seeds' if several else 'none',
        'updating': 'none',
        'output': 'probability of hemorrhage by a logistic output; 0.5 and more is called hemorrhage; see section 4',
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
        'robustness': 'spread over seeds and folds (section 5), ablations (section 6)',
        'internal': f'out-of-fold predictions of {len(best.pooled.labels)} images of the same set',
        'external': f'none; {TODO}',
        'performance': ', '.join(f'{name} {best.number(key)}' for name, key in SCORES.items()),
        'diagnostic': diagnostic,
        'by_fold': 'accuracy by fold: section 5',
    }
