"""Effects of choices on accuracy, against statsmodels and against what was put into the data."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from bhcnet_jax.statistics import choices

VALUES = {'depth': (1, 2, 3), 'norm': ('none', 'batch'), 'rate': (1e-3, 1e-2, 1e-1)}


def study(recipes=60, images=80, seed=0, **changes):
    """Choices drawn at random, and hits whose chance is 0.7 and what `changes` adds for a value, 'depth_3'."""
    generator = np.random.default_rng(seed)
    combinations = list(itertools.product(*VALUES.values()))
    drawn = [combinations[place] for place in generator.integers(len(combinations), size=recipes)]
    table = pd.DataFrame(drawn, columns=list(VALUES))
    chance = 0.7 + sum(table.map(str)[key.partition('_')[0]].eq(key.partition('_')[2]) * by
                       for key, by in changes.items())  # fmt: skip
    return (generator.random((recipes, images)) < np.broadcast_to(chance, recipes)[:, None]).astype(float), table


def test_changes_are_those_of_statsmodels_with_sum_coding():
    hits, table = study(depth_3=0.1, norm_batch=-0.2)
    fitted = smf.ols('y ~ C(depth, Sum) + C(norm, Sum) + C(rate, Sum)', table.assign(y=hits.mean(axis=1))).fit()
    found = {(each.key, each.value): each.change for each in choices.effects(hits, table, draws=10)}
    for key, values in VALUES.items():
        for value in sorted(values)[:-1]:  # statsmodels leaves the last out, which is minus the sum of the others
            assert found[key, value] == pytest.approx(fitted.params[f'C({key}, Sum)[S.{value}]'], abs=1e-9)
        assert sum(found[key, value] for value in values) == pytest.approx(0, abs=1e-9)


def test_intervals_hold_what_was_put_in_and_leave_out_what_was_not():
    held = []
    for seed in range(40):
        found = choices.effects(*study(seed=seed, norm_batch=-0.2), draws=200)
        held += [each.low <= 0.1 <= each.high and each.high > each.low > 0 for each in found if each.value == 'none']
        held += [each.low <= 0 <= each.high for each in found if each.key == 'depth']
    assert np.mean(held) >= 0.93  # of 160; drawn both ways they are wide, so 95 % is not their upper end


def test_recipes_drawn_together_widen_the_interval():
    hits, table = study(recipes=20)
    hits, table = np.repeat(hits, 4, axis=0), table.loc[np.repeat(np.arange(20), 4)].reset_index(drop=True)

    def width(drawn_together):
        one, *_ = choices.effects(hits, table, drawn_together=drawn_together, draws=400)
        return one.high - one.low

    assert width(np.repeat(np.arange(20), 4)) > 1.3 * width(None)


def test_another_number_of_choices_is_refused():
    hits, table = study()
    with pytest.raises(ValueError, match='59 choices for 60 recipes'):
        choices.effects(hits, table[1:])
