"""What networks cost, and which learning rate validation images choose."""

import dataclasses

import numpy as np

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.page import Figure
from bhcnet_jax.report.sections.costs import costs


def test_every_network_has_its_parameters_operations_and_time(tmp_path):
    found = evidence.gather(studies.write(tmp_path))
    table, *_ = costs(found)
    assert len(table.rows) == sum(each.kind == 'network' for each in found.recipes) == 4
    for _, parameters, operations, seconds in table.rows:
        assert parameters.value == 92_801
        assert operations.value == 2 * (9 * (32 * 128**2 + 32 * 64 * 64**2 + 64 * 128 * 32**2) + 128)
        assert seconds.n == 8


def test_of_rates_the_one_with_the_lowest_validation_loss_in_a_fold_answers_for_it(tmp_path):
    found = evidence.gather(studies.write(tmp_path)[:1])
    slow, fast = (next(each for each in found.recipes if each.settings['optimizer.peak_lr'] == rate)
                  for rate in (1e-3, 1e-2))  # fmt: skip
    fast = dataclasses.replace(fast, settings={**slow.settings, 'optimizer.peak_lr': 1e-2})
    slow, fast = (
        dataclasses.replace(each, trials=each.trials.assign(val_loss=np.where(each.trials.fold == 0, here, elsewhere)))
        for each, here, elsewhere in ((slow, 0.1, 0.3), (fast, 0.2, 0.2))
    )
    rates = next(each for each in costs(dataclasses.replace(found, recipes=[slow, fast])) if each.name == 'rates')
    ((label, accuracy, _, told),) = rates.rows
    assert label == 'imbalanced'
    assert told == '0.01 in 3, 0.001 in 1'
    right = [np.mean((each.mean_probability >= 0.5) == each.pooled.labels, where=mask)
             for each, mask in ((slow, slow.folds == 0), (fast, fast.folds != 0))]  # fmt: skip
    assert accuracy.value == np.average(right, weights=[12, 36])


def test_networks_of_three_sizes_make_a_figure(tmp_path):
    found = evidence.gather(studies.write(tmp_path)[:1])
    sizes = [dataclasses.replace(each, settings={**each.settings, 'model.hidden_units': units})
             for each, units in zip(found.recipes, (0, 8, 16, 16), strict=True)]  # fmt: skip
    assert not any(isinstance(each, Figure) for each in costs(found))
    figure = next(each for each in costs(dataclasses.replace(found, recipes=sizes)) if isinstance(each, Figure))
    assert figure.svg.count('<use') >= 4
    names = [each.label.partition(' (')[2].removesuffix(')') for each in sizes]
    assert all(names) and all(f'>{name[:40]}' in figure.svg for name in names)  # without what all labels begin with
