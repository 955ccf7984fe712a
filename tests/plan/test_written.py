"""What a run directory was asked for, told from its config.json and env.json."""

import json
import tracemalloc

import pytest

from bhcnet_jax.configs import base
from bhcnet_jax.plan import written

CONFIG = json.loads(base.get_config().to_json())
HUGE = 'optimizer.peak_lr=log(1e-4,1e-2,1000000) model.dropout=uniform(0,0.5,1000000,3)'


def test_trials_of_several_starts_count_once():
    starts = [{'sweep': 'seed=0:3'}, {'command': "python -m bhcnet_jax.main --config=base --sweep='seed=2:5'"}]
    assert written.asked(CONFIG, starts) == 5


@pytest.mark.parametrize('start', [{'sweep': HUGE}, {'command': f"python -m bhcnet_jax.main --sweep='{HUGE}'"}])
def test_a_start_that_names_more_than_can_be_planned_is_unknown_and_costs_nothing(start):
    written.asked(CONFIG, [{'sweep': 'seed=0:2'}])  # what is made once
    tracemalloc.start()
    assert written.asked(CONFIG, [start]) is None
    assert len(list(written.recipes(CONFIG, [start]))) == 1  # that of the config alone
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_listed_trials_multiply_the_axes_of_a_start():
    listed = {**CONFIG, 'trials': [{'model.dropout': 0.1}, {'model.dropout': 0.2}]}
    assert written.asked(listed, [{'sweep': 'seed=0:3'}]) == 6
    assert written.asked(listed, [{'sweep': 'seed=0:500001'}]) is None
