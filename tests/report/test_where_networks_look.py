"""The section on where networks look is there if that was measured, and says of what."""

import json

import studies
from bhcnet_jax.inference import localization
from bhcnet_jax.inference.localization import CENTRE, MAP, RANDOM, Judged
from bhcnet_jax.statistics.bootstrap import Estimate
from studies import numbers, section

TITLE = 'Where the networks look'


def estimate(mean, low, high):
    return Estimate(mean, low, high, float('nan'), 0)


def judged(gain):
    scores = {
        whose: {'pointing game': estimate(mean, mean - 0.05, mean + 0.05), 'IoU': estimate(mean / 2, 0.0, 0.5)}
        for whose, mean in ((MAP, 0.4), (RANDOM, 0.1), (CENTRE, 0.2))
    }
    gains = {whose: dict.fromkeys(('pointing game', 'IoU'), gain) for whose in (RANDOM, CENTRE)}
    return Judged('grad_cam', 'tuned', ['a', 'b'], 'head_ct', 300, 0, 0.75, scores, gains)


def report(folder, dataset, gain):
    directories = studies.write(folder, dataset=dataset)
    localization.write(judged(gain), directories[0])
    studies.make_report(folder, *directories)
    return folder


def test_scores_are_shown_with_n_interval_and_the_word_phantom_also_among_real_images(tmp_path):
    found = report(tmp_path, 'head_ct', estimate(0.2, 0.1, 0.3))
    rows = numbers(found, 'localization-1').loc['trained networks']
    assert rows.loc['pointing game'].tolist() == [0.4, 0.4 - 0.05, 0.4 + 0.05, 300]
    assert {*numbers(found, 'localization-1').index.get_level_values('row')} == {
        'trained networks', RANDOM, 'centre prior, no network',
    }  # fmt: skip
    told = section(found, TITLE)
    assert 'PHANTOM: Grad-CAM of tuned (2 networks trained on head_ct)' in told and '75.0 % of them' in told
    assert told.count('better than the centre prior') == 2 and 'no better' not in told


def test_a_map_no_better_than_the_centre_prior_is_said_to_be_so(tmp_path):
    told = section(report(tmp_path, 'PHANTOM', estimate(0.02, -0.01, 0.05)), TITLE)
    assert told.count('no better than the centre prior, +0.020 (-0.010 to +0.050)') == 2


def test_without_a_measurement_there_is_no_section(real):
    assert TITLE not in studies.text(real)


def test_a_damaged_measurement_is_one_line(tmp_path, refusal):
    directories = studies.write(tmp_path)
    (directories[0] / 'localization_grad_cam.json').write_text(json.dumps({'how': 'grad_cam'}))
    assert 'localization_grad_cam.json cannot be read' in refusal(studies.make_report, tmp_path, *directories)
