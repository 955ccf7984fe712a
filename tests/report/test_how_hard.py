"""The section on difficulty is there if that was measured, with every number's n and interval."""

import json

import pytest

import studies
from bhcnet_jax.inference import difficulty
from bhcnet_jax.inference.difficulty import Bin, Found, Overlap, Rate
from bhcnet_jax.statistics import metrics
from studies import numbers, section

TITLE = 'How hard a bleeding may be to see'


def found(with_masks=True):
    bins = [Bin(2.0 * 2**place, 3.0 * 2**place, 3.9 * 2**place, 40 + 8 * place, 100) for place in range(8)]
    return Found(
        recipe='tuned', trials=['a', 'b'], trained_on='head_ct', decided='a probability of 0.5', heads=2000,
        drawing='0' * 64, contrast=bins, area=bins, kinds={'epidural': Rate(90, 100), 'subdural': Rate(60, 120)},
        specificity={'all': Rate(900, 1000), 'drain': Rate(30, 60)},
        dice={'all': Overlap(0.6, 0.5, 0.7, 220), 'epidural': Overlap(0.7, None, None, 100)} if with_masks else {},
        contoured=Rate(700, 1000) if with_masks else None,
    )  # fmt: skip


def report(folder, dataset='head_ct', with_masks=True):
    directories = studies.write(folder, dataset=dataset)
    difficulty.write(found(with_masks), directories[0])
    studies.make_report(folder, *directories)
    return folder


def test_shares_are_shown_with_n_and_interval_and_the_word_phantom(tmp_path):
    made = report(tmp_path)
    row = numbers(made, 'difficulty-distractors-1').loc['drain'].loc['specificity'].tolist()
    assert row == pytest.approx([0.5, *map(float, metrics.wilson(30, 60)), 60])
    assert numbers(made, 'difficulty-bins-1').loc['contrast 2 to 3.9'].loc['sensitivity'].tolist()[::3] == [0.4, 100]
    dice = numbers(made, 'difficulty-kinds-1').loc['all'].loc['Dice of the mask head'].tolist()
    assert dice == [0.6, 0.5, 0.7, 220]
    told = section(made, TITLE)
    assert 'PHANTOM: tuned on drawn heads' in told
    assert 'tuned, 2 networks trained on head_ct, on 2000 drawn heads' in told
    assert 'without any outline of the mask head: 70.0 %' in told


def test_without_a_mask_head_nothing_is_said_of_outlines(tmp_path):
    made = report(tmp_path, with_masks=False)
    assert 'outline of the mask head: ' not in section(made, TITLE)
    assert set(numbers(made, 'difficulty-kinds-1').index.get_level_values(1)) == {'sensitivity'}


def test_without_a_measurement_there_is_no_section(real):
    assert TITLE not in studies.text(real)


def test_a_damaged_measurement_is_one_line(tmp_path, refusal):
    directories = studies.write(tmp_path)
    (directories[0] / 'difficulty.json').write_text(json.dumps({'recipe': 'tuned'}))
    assert 'difficulty.json cannot be read' in refusal(studies.make_report, tmp_path, *directories)
