import contextlib
import fractions
import sqlite3

import pandas as pd
import pytest

from bhcnet_jax.errors import UserError
from bhcnet_jax.plan.trial import Identity
from bhcnet_jax.run import pruning, train
from bhcnet_jax.run.pruning import Pruning
from bhcnet_jax.run.train import Options
from lanes import small_config

RULE = 'rungs=1,3 keep=1/2'
AXES = 'seed=0:2 optimizer.peak_lr=1e-5,1e-3,1e-2 balanced.epochs=2,4'


def identity(*epochs, point=None):
    names = ('balanced', 'imbalanced')[: len(epochs)]
    return Identity('id', 'recipe', 'signature', 'batch', names, epochs, point or {})


def test_a_rule_is_what_its_text_says():
    assert pruning.parse('rungs=4,8,16 keep=1/3') == Pruning((4, 8, 16), fractions.Fraction(1, 3))
    assert pruning.parse('rungs=4 keep=0.25').keep == fractions.Fraction(1, 4)
    assert pruning.parse('').rungs == ()


@pytest.mark.parametrize(
    'text',
    ['rungs=4', 'keep=1/3', 'rungs= keep=1/3', 'rungs=0,4 keep=1/3', 'rungs=8,4 keep=1/3', 'rungs=4,4 keep=1/3',
     'rungs=4 keep=0', 'rungs=4 keep=1', 'rungs=4 keep=3/2', 'rungs=4 keep=1/0', 'rungs=4 keep=x', 'keep=1/3 rungs=4'],
)  # fmt: skip
def test_another_rule_is_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"expected like 'rungs=4,8,16 keep=1/3'"):
        pruning.parse(text)


def test_the_lowest_losses_survive_and_one_always_does():
    losses = {'a': 0.3, 'b': 0.1, 'c': 0.2, 'd': 0.1, 'e': 0.5}
    assert pruning.survivors(losses, fractions.Fraction(2, 5)) == {'b', 'd'}
    assert pruning.survivors(losses, fractions.Fraction(1, 100)) == {'b'}  # of equals, the lowest id
    assert pruning.survivors({}, fractions.Fraction(1, 2)) == set()


def test_a_rung_counts_epochs_over_all_phases():
    assert pruning.where(identity(4, 2), 4) == ('balanced', 4)
    assert pruning.where(identity(4, 2), 5) == ('imbalanced', 1)
    assert pruning.where(identity(4, 2), 6) is None  # it ends there, so there is nothing to save


def test_trials_without_a_validation_part_are_not_ranked():
    with pytest.raises(UserError, match=r'set --config.split.val_folds=10'):
        pruning.check(pruning.parse('rungs=4 keep=1/3'), [identity(24)], 0)
    with pytest.raises(UserError, match=r'some have none'):
        pruning.check(pruning.parse('rungs=4 keep=1/3'), [identity(24), identity(24, point={'split.val_folds': 0})], 5)
    with pytest.raises(UserError, match=r'first rung is 24, but no trial has more than 24 epochs'):
        pruning.check(pruning.parse('rungs=24 keep=1/3'), [identity(24)], 5)


@pytest.fixture(scope='module')
def sweep(labelled_folder, tmp_path_factory):
    """Runs a sweep of 12 trials in this process. -> its tables by name, without times."""
    folder = tmp_path_factory.mktemp('sweeps')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))

        def run(name, *, prune='', axes=AXES, keep_weights='final'):
            config = small_config(
                dataset__name='folder', dataset__dir=str(labelled_folder), imbalanced__positives=25,
                model__filters=(2, 3), augment__policy='none', split__val_folds=4, imbalanced__epochs=2,
                engine__keep_weights=keep_weights,
            )  # fmt: skip
            assert train.run(config, Options(workdir=str(folder / name), sweep=axes, prune=prune))
            with contextlib.closing(sqlite3.connect(folder / name / 'results.sqlite')) as database:
                tables = [pd.read_sql_query(f'SELECT * FROM {table}', database) for table in TABLES]
            tables = [table.drop(columns=TIMES, errors='ignore') for table in tables]
            return [table.sort_values(list(table.columns[:5])).reset_index(drop=True) for table in tables]

        yield run


TABLES = ('trials', 'epochs', 'predictions')
TIMES = ['train_seconds', 'images_per_second', 'seconds', 'digest']  # a digest is of the times too


@pytest.fixture(scope='module')
def full(sweep):
    """Every trial trained to its end."""
    return sweep('full')


@pytest.fixture(scope='module')
def pruned(sweep):
    return sweep('pruned', prune=RULE)


def epochs_of(tables):
    return tables[1].groupby('trial_id').size()


def ranked(epochs, ids, phase, epoch):
    """Ids by loss on the validation part after an epoch."""
    there = epochs[epochs.trial_id.isin(ids) & (epochs.phase == phase) & (epochs.epoch == epoch)]
    return list(there.sort_values(['val_loss', 'trial_id']).trial_id)


@pytest.mark.slow
def test_the_best_on_validation_images_go_on_and_the_others_stop_at_their_rung(full, pruned):
    epochs, trained = full[1], epochs_of(pruned)
    first = ranked(epochs, set(epochs.trial_id), 'balanced', 1)
    assert len(first) == 12
    assert set(trained[trained == 1].index) == set(first[6:])
    planned = epochs_of(full)
    at_three = {  # trials of 2 + 2 epochs are in their second phase by then
        trial_id: ('imbalanced', 1) if planned[trial_id] == 4 else ('balanced', 3) for trial_id in first[:6]
    }
    losses = epochs.set_index(['trial_id', 'phase', 'epoch']).val_loss
    second = sorted(at_three, key=lambda trial_id: losses[trial_id, *at_three[trial_id]])
    assert set(trained[trained == 3].index) == set(second[3:])
    done = pruned[0][pruned[0].status == 'DONE']
    assert set(done.trial_id) == set(second[:3])
    assert set(pruned[0].status) == {'DONE', 'PRUNED'}


def test_what_survives_has_the_rows_of_an_unpruned_sweep(full, pruned):
    survivors = set(pruned[0][pruned[0].status == 'DONE'].trial_id)
    for whole, part in zip(full, pruned, strict=True):
        expected, found = (table[table.trial_id.isin(survivors)].reset_index(drop=True) for table in (whole, part))
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)  # NULLs of the others


def test_pruned_trials_can_be_trained_to_their_end(sweep, full, pruned):
    for again, whole in zip(sweep('pruned'), full, strict=True):
        pd.testing.assert_frame_equal(again, whole, check_exact=True)


@pytest.mark.slow
def test_pruned_trials_whose_weights_were_dropped_start_anew_with_the_same_rows(sweep, full):
    sweep('dropped', prune=RULE, keep_weights='none')
    for again, whole in zip(sweep('dropped', keep_weights='none'), full, strict=True):
        pd.testing.assert_frame_equal(again, whole, check_exact=True)


@pytest.mark.slow
def test_a_larger_field_is_ranked_anew(sweep, full):
    sweep('grown', prune=RULE, axes=AXES.replace('seed=0:2', 'seed=0:1'))
    grown, at_once = sweep('grown', prune=RULE), sweep('at_once', prune=RULE)
    status = at_once[0].set_index('trial_id').status
    for trial_id, found in grown[0].set_index('trial_id').status.items():
        # Who had survived in the smaller field may have been trained to the end there, and stays DONE.
        assert found == status[trial_id] or (found == 'DONE' and status[trial_id] == 'PRUNED')
    assert set(status[status == 'DONE'].index) <= set(grown[0][grown[0].status == 'DONE'].trial_id)

