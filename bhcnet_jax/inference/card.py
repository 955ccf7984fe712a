"""The model card of a bundle: what its model.json says, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

PHANTOM = 'PHANTOM'


def text(described: Mapping[str, Any]) -> str:
    """The card, Markdown. described: what `bundles` writes into model.json."""
    test, size = described['test'], described['preprocessing']['image_size']
    negative, positive = described['class_names']
    networks = len(described['members'])
    synthetic = '**Trained on synthetic images (PHANTOM). It says nothing about real ones.**'
    untested = '- The results are of single networks. Their mean, with which this bundle predicts, was not tested.'
    lines = [
        f'# {described["name"]}',
        '',
        *([synthetic, ''] if described['dataset'] == PHANTOM else []),
        f'Tells {positive} from {negative} in grey images, {size} x {size} pixels after preprocessing.',
        f'Model `{described["recipe"]["model"]["name"]}`, {_networks(networks)}. `model.json` has the whole recipe.',
        '',
        '## Training set',
        '',
        f'{described["dataset"]}, fingerprint `{described["fingerprint"]}`.' + _drawn(described['recipe']['phases']),
        '`training_images.json` has a SHA-256 of the pixels of each image, if the training recorded them.',
        '',
        '## Results',
        '',
        f'On {test["images"]} images of that set, {test["positives"]} of them {positive}.',
        'Each was scored by networks that were not trained on it.',
        f'Trainings: {test["trials"]}. Seeds: {test["seeds"]}. Folds: {test["folds"]}. Threshold: 0.5.',
        '',
        '| | value | 95 % interval over images | standard deviation over seeds |',
        '|---|---|---|---|',
        *(_row(name, metric) for name, metric in test['metrics'].items()),
        '',
        '## Limits',
        '',
        '- For research only. This is not a medical device, and nothing here may be used for a diagnosis.',
        '- Images from elsewhere were not tested. Expect less there.',
        *([untested] if networks > 1 else []),
        '- It answers for any image, also for one that is nothing like those of its training set.',
    ]
    return '\n'.join(lines) + '\n'


def _drawn(phases: Sequence[str]) -> str:
    if phases[0] != 'phantom':
        return ''
    return ' Before it: drawn heads.' if len(phases) > 1 else ' Its images were not used: trained on drawn heads alone.'


def _networks(count: int) -> str:
    return 'one network' if count == 1 else f'the mean logit of {count} networks'


def _row(name: str, metric: Mapping[str, float | None]) -> str:
    value, low, high, spread = ('-' if each is None else f'{each:.3f}' for each in metric.values())
    interval = '-' if metric['low'] is None else f'{low} to {high}'
    return f'| {name} | {value} | {interval} | {spread} |'
