"""The model card of a bundle: what its model.json says, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from bhcnet_jax.inference.model import PHANTOM, PHANTOM_TRAINED, Measured


def text(described: Mapping[str, Any]) -> str:
    """The card, Markdown. described: what `bundles` writes into model.json."""
    test, size = described['test'], described['preprocessing']['image_size']
    negative, positive = described['class_names']
    networks = len(described['members'])
    marks = {
        PHANTOM: '**Trained on synthetic images (PHANTOM). It says nothing about real ones.**',
        PHANTOM_TRAINED: '**PHANTOM-TRAINED: these networks have seen drawn heads alone, and no patient.**',
    }
    mark = marks.get(described['dataset'])
    untested = '- The first table is of single networks. Their mean, with which this bundle predicts, was not tested.'
    lines = [
        f'# {described["name"]}',
        '',
        *([mark, ''] if mark else []),
        f'Tells {positive} from {negative} in grey images, {size} x {size} pixels after preprocessing.',
        f'Model `{described["recipe"]["model"]["name"]}`, {_networks(networks)}. `model.json` has the whole recipe.',
        '',
        '## Training set',
        '',
        f'{described["dataset"]}, fingerprint `{described["fingerprint"]}`.{_drawn(described)}',
        '`training_images.json` has a SHA-256 of the pixels of each image, if the training recorded them.',
        '',
        *_results(test, positive),
        *_measured(described['measured']),
        *_calibration(described),
        *_outliers(described),
        '## Limits',
        '',
        '- For research only. This is not a medical device, and nothing here may be used for a diagnosis.',
        '- Other images than those above were not tested. Expect less there.'
        if described['measured']
        else '- Images from elsewhere were not tested. Expect less there.',
        *([untested] if networks > 1 and 'missing' not in test else []),
        '- `abstained` does not find every image that it cannot judge. See docs/use.md for what it misses.',
    ]
    return '\n'.join(lines) + '\n'


def _results(test: Mapping[str, Any], positive: str) -> list[str]:
    if 'missing' in test:
        return []
    return [
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
    ]


def _measured(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was found on images from elsewhere, if that was measured."""
    if not measured:
        return []
    return [
        '## On images from elsewhere',
        '',
        'Measured with these weights by `python -m bhcnet_jax.evaluate`. The interval is a 95 % bootstrap of groups.',
        '',
        '| images | AUC | n | positive | fingerprint | looks |',
        '|---|---|---|---|---|---|',
        *(_measured_row(Measured(**each)) for each in measured),
        '',
    ]


def _measured_row(each: Measured) -> str:
    auc = f'{each.auc:.3f} ({each.low:.3f} to {each.high:.3f})'
    return f'| {each.dataset} | {auc} | {each.images} | {each.positives} | `{each.fingerprint[:12]}` | {each.looks} |'


def _calibration(described: Mapping[str, Any]) -> list[str]:
    made = described['calibration']
    if 'missing' in made:
        missing = f'Not calibrated, and no abstention: {made["missing"]}. Decisions are made at a probability of 0.5.'
        return ['## Calibration', '', missing, '']
    shown = made['evidence']
    scores = [
        f'| {name} | {_value(before)} | {_value(shown["after"][name])} |' for name, before in shown['before'].items()
    ]
    kinds = {'possible': 'held for possible', 'answered': 'answered', 'right': 'right, of those answered'}
    shares = {name: [f'{_value(each)}, n = {each["images"]}' for each in shown['abstention'][name]] for name in kinds}
    return [
        '## Calibration',
        '',
        f'Method: {made["method"]}. {_fitted_on(described)}',
        'It holds for the share of positives of the training set; where that is another, probabilities are wrong.',
        f'Operating point: {made["operating_point"]}, a calibrated probability of {made["threshold"]:.3f}.',
        '',
        'Measured on images that the calibration was not fitted on (cross-fitting, five parts), 95 % intervals:',
        '',
        '| | as it was, at 0.5 | calibrated, at the operating point |',
        '|---|---|---|',
        *scores,
        '',
        '## Abstention',
        '',
        f'By a conformal method: each class is wrongly held for impossible in {made["error_level"]:.0%} of its images',
        'at most, if new images are like those of the training set. It answers where the class that it decides for is',
        'possible and the other is not.',
        f'Negative is possible up to a calibrated probability of {made["negative_up_to"]:.3f}, positive from',
        f'{made["positive_from"]:.3f}. Measured as above:',
        '',
        '| | {} | {} |'.format(*described['class_names']),
        '|---|---|---|',
        *(f'| {kinds[name]} | {" | ".join(of_classes)} |' for name, of_classes in shares.items()),
        '',
    ]


def _fitted_on(described: Mapping[str, Any]) -> str:
    """Which logits were calibrated, and to which that is applied."""
    shown, members = described['calibration']['evidence'], len(described['members'])
    each = shown['networks_per_image']
    mean = 'the logit of the network' if each == 1 else f'the mean logit of the {each} networks, one a seed,'
    told = f'Fitted on {shown["images"]} images, {shown["positives"]} positive: of each {mean} not trained on it.'
    if members == each:
        return told
    return (
        f'{told} Here it is applied to the mean logit of {members} networks. That mean was not tested, as no image is '
        'left that none of them was trained on; it varies less, so calibrated probabilities may be too near 0.5.'
    )


def _outliers(described: Mapping[str, Any]) -> list[str]:
    told = described['outliers']
    title = ['## Images unlike the training images', '']
    if 'missing' in told:
        return [*title, f'They are not marked: {told["missing"]}.', '']
    shown = told['evidence']
    return [
        *title,
        'They are told by their edges, without the networks. Each training image was scored without it and its group:',
        '',
        f'| of {shown["images"]} images | marked |',
        '|---|---|',
        f'| as they are | {shown["flagged"]} |',
        *(f'| {way} | {count} |' for way, count in shown['ways'].items()),
        '',
    ]


def _value(metric: Mapping[str, float | None]) -> str:
    value, low, high = ('-' if metric[name] is None else f'{metric[name]:.3f}' for name in ('value', 'low', 'high'))
    return value if metric['low'] is None else f'{value} ({low} to {high})'


def _drawn(described: Mapping[str, Any]) -> str:
    phases = described['recipe']['phases']
    if phases[0] != 'phantom' or described['dataset'] == PHANTOM_TRAINED:
        return ''
    return ' Before it: drawn heads.' if len(phases) > 1 else ' Its images were not used: trained on drawn heads alone.'


def _networks(count: int) -> str:
    return 'one network' if count == 1 else f'the mean logit of {count} networks'


def _row(name: str, metric: Mapping[str, float | None]) -> str:
    value, low, high, spread = ('-' if each is None else f'{each:.3f}' for each in metric.values())
    interval = '-' if metric['low'] is None else f'{low} to {high}'
    return f'| {name} | {value} | {interval} | {spread} |'
