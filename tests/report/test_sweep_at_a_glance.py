"""The sweep at a glance shows what numbers alone may explain."""

import dataclasses

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.sections import sweep


def test_only_recipes_that_differ_in_numeric_settings_alone_are_shown_together(tmp_path):
    found = evidence.gather(studies.write(tmp_path)[:1])
    assert 'one of 4 recipes' in sweep.sweep(found).blocks[0].caption
    first, *others = found.recipes
    other = dataclasses.replace(first, settings={**first.settings, 'augment.policy': 'none'})
    assert 'one of 3 recipes' in sweep.sweep(dataclasses.replace(found, recipes=[other, *others])).blocks[0].caption
    policies = [dataclasses.replace(each, settings={**each.settings, 'augment.policy': str(place)})
                for place, each in enumerate(found.recipes)]  # fmt: skip
    assert sweep.sweep(dataclasses.replace(found, recipes=policies)).blocks[0].startswith('Missing: ')
