"""Leaks between test parts are counted, and every misread image is named."""

import json
import re

import studies
from bhcnet_jax.report import evidence
from studies import numbers, recipe_id_of, section


def test_look_alikes_in_one_test_part_are_counted(real, tmp_path):
    assert numbers(real, 'leakage').value['groups with images in two test parts, over all recipes', 'found'] == 0
    directories = studies.write(tmp_path)
    for directory in directories:
        data = json.loads((directory / 'data.json').read_text())
        data['groups'].append(['000.png', '004.png'])  # folds 0 and 1
        (directory / 'data.json').write_text(json.dumps(data))
    found = [evidence.crossing(each) for each in evidence.gather(directories).recipes]
    assert found == [1] * 6


def test_every_misread_image_is_named(real):
    best = numbers(real, 'leaderboard').value.xs('accuracy', level='column').drop(
        ['random forest on all shortcuts', 'random forest on 64 x 64 pixels']).idxmax()  # fmt: skip
    scored = studies.predictions([real / 'networks'])
    mine = scored[scored.recipe_id == recipe_id_of(best, scored)].groupby('image_id')[['label', 'probability']].mean()
    wrong = mine[(mine.probability >= 0.5) != (mine.label == 1)]
    assert len(wrong) > 3
    assert set(re.findall(r'\d{3}\.png', section(real, 'Misread images'))) == set(wrong.index)
    assert 'called normal by the mean of 2 seeds of' in section(real, 'Misread images')
    for label, name in ((1, 'hemorrhage'), (0, 'normal')):
        count, of = (wrong.label == label).sum(), (mine.label == label).sum()
        told = f'{count or "none"} of {of} images of class {name}'
        assert told in section(real, 'Misread images')
