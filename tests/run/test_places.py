import collections
import contextlib
import json

import numpy as np
import pytest

from bhcnet_jax.errors import UserError
from bhcnet_jax.run import places
from bhcnet_jax.run.checkpoints import Checkpoints

PHASES = ('balanced', 'imbalanced')


EVERYTHING = collections.defaultdict(lambda: 99)  # epochs that the database has recorded


def find(path, recorded=EVERYTHING):
    return places.find(path, {(trial_id, phase): recorded[trial_id, phase] for trial_id in 'abcde' for phase in PHASES})


def like(count):
    return {'weights': np.zeros((count, 2), np.float32)}


def train(path, trial_ids, phase, epochs, values):
    """What a batch of lanes leaves behind after `epochs` epochs of a phase."""
    directory = places.enter(path, trial_ids, PHASES, find(path), like(len(trial_ids)))
    tree = {'weights': np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)}
    with contextlib.closing(Checkpoints(directory / phase, trial_ids)) as checkpoints:
        checkpoints.save(epochs, tree)
    return directory


def weights(path, trial_id):
    """What is stored at the place of a trial."""
    place = find(path)[trial_id]
    ids = json.loads((place.directory / places.BATCH).read_text())['trials']
    with contextlib.closing(Checkpoints(place.directory / place.phase_name, ids)) as checkpoints:
        return checkpoints.restore(like(len(ids)), at=place.epoch)[1]['weights'][place.lane].tolist()


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    assert find(tmp_path) == {}
    places.enter(tmp_path, ['a'], PHASES, {}, like(1))
    assert find(tmp_path) == {}


def test_a_trial_is_where_it_has_come_furthest(tmp_path):
    train(tmp_path, ['a', 'b'], 'balanced', 9, [1, 2])
    train(tmp_path, ['a', 'b'], 'imbalanced', 2, [3, 4])
    place = find(tmp_path)['b']
    assert (place.phase, place.epoch, place.phase_name, place.lane) == (1, 2, 'imbalanced', 1)
    assert weights(tmp_path, 'b') == [4, 4]


def test_only_a_checkpoint_that_the_database_has_recorded_is_a_place(tmp_path):
    for epoch, phase in ((2, 'balanced'), (3, 'balanced'), (1, 'imbalanced')):
        train(tmp_path, ['a', 'b'], phase, epoch, [1, 2])
    assert find(tmp_path)['a'][:2] == (1, 1)
    recorded = {('a', 'balanced'): 2, ('b', 'balanced'): 1}
    found = places.find(tmp_path, recorded)
    assert (found.keys(), found['a'][:2]) == ({'a'}, (0, 2))
    assert places.set_aside(tmp_path, recorded) == {'a', 'b'}
    assert places.find(tmp_path, recorded) == find(tmp_path, collections.defaultdict(int, recorded)) == found
    directory = found['a'].directory
    assert [entry.name for entry in (directory / 'balanced').iterdir() if entry.name.isdecimal()] == ['2']
    assert len(list(directory.glob('*/unrecorded-*'))) == 2  # set aside, not deleted


def test_lanes_that_go_on_together_stay_where_they_are(tmp_path):
    first = train(tmp_path, ['a', 'b'], 'balanced', 1, [1, 2])
    assert train(tmp_path, ['a', 'b'], 'balanced', 2, [3, 4]) == first


def test_lanes_of_several_directories_go_on_together_with_their_own_weights(tmp_path):
    train(tmp_path, ['a', 'b'], 'balanced', 3, [1, 2])
    train(tmp_path, ['c', 'd', 'e'], 'balanced', 3, [3, 4, 5])
    directory = places.enter(tmp_path, ['e', 'b'], PHASES, find(tmp_path), like(2))
    with contextlib.closing(Checkpoints(directory / 'balanced', ['e', 'b'])) as checkpoints:
        epochs, tree = checkpoints.restore(like(2))
    assert epochs == 3
    assert tree['weights'].tolist() == [[5, 5], [2, 2]]


def test_the_same_trials_meet_again_in_a_new_directory(tmp_path):
    first = train(tmp_path, ['a', 'b'], 'balanced', 1, [1, 2])
    train(tmp_path, ['a'], 'balanced', 2, [3])
    train(tmp_path, ['b'], 'balanced', 2, [4])
    assert train(tmp_path, ['a', 'b'], 'balanced', 3, [5, 6]) != first
    assert (weights(tmp_path, 'a'), weights(tmp_path, 'b')) == ([5, 5], [6, 6])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    directory = train(tmp_path, ['a', 'b'], 'balanced', 1, [1, 2])
    train(tmp_path, ['a', 'b'], 'balanced', 2, [3, 4])
    for file in (directory / 'balanced' / '2').rglob('*'):
        if file.is_file():
            file.write_bytes(b'')
    found = find(tmp_path)
    with pytest.raises(places.UnreadableError):
        places.enter(tmp_path, ['b'], PHASES, found, like(1))
    assert find(tmp_path)['b'].epoch == 1
    train(tmp_path, ['b'], 'balanced', 2, [9])
    assert (weights(tmp_path, 'a'), weights(tmp_path, 'b')) == ([1, 1], [9, 9])


def test_trials_that_changed_places_in_a_batch_are_noticed(tmp_path, caplog):
    directory = train(tmp_path, ['a', 'b', 'c'], 'balanced', 1, [1, 2, 3])
    text = (directory / places.BATCH).read_text()
    (directory / places.BATCH).write_text(text.replace('"a"', '"x"').replace('"b"', '"a"').replace('"x"', '"b"'))
    with pytest.raises(places.UnreadableError):
        places.enter(tmp_path, ['b'], PHASES, find(tmp_path), like(1))
    assert 'does not agree with digests.json' in caplog.text
    assert find(tmp_path) == {}


def test_a_forgotten_trial_starts_anew_and_its_neighbour_goes_on(tmp_path):
    train(tmp_path, ['a', 'b'], 'balanced', 1, [1, 2])
    places.forget(tmp_path, {'a'})
    assert set(find(tmp_path)) == {'b'}
    places.enter(tmp_path, ['b'], PHASES, find(tmp_path), like(1))
    assert weights(tmp_path, 'b') == [2, 2]


def test_tidying_deletes_what_is_needless(tmp_path):
    both = train(tmp_path, ['a', 'b'], 'balanced', 1, [1, 2])
    alone = train(tmp_path, ['b'], 'balanced', 2, [3])
    places.tidy(tmp_path, {'a': True, 'b': True}, find(tmp_path))
    assert both.exists() and alone.exists()
    places.tidy(tmp_path, {'a': False, 'b': True}, find(tmp_path))
    assert not both.exists() and alone.exists()
    places.tidy(tmp_path, {'a': False, 'b': False}, find(tmp_path))
    assert not alone.exists()


def test_tidying_leaves_what_the_database_does_not_know(tmp_path):
    both, alone = (train(tmp_path, ids, 'balanced', 1, [1] * len(ids)) for ids in (['a', 'b'], ['c']))
    places.tidy(tmp_path, {'a': False}, find(tmp_path))
    assert both.exists() and alone.exists()
    places.forget(tmp_path, ['b', 'c'])
    places.tidy(tmp_path, {'a': False}, find(tmp_path))
    assert not both.exists() and not alone.exists()


@pytest.mark.parametrize(
    'text', ['{', '[]', '{"trials": [["a"]], "phases": ["x"]}', '{"trials": "a", "phases": 1}', '[' * 10**5, '\x00']
)
def test_a_damaged_list_of_trials_is_named_in_one_line(tmp_path, text):
    directory = train(tmp_path, ['a'], 'balanced', 1, [1])
    (directory / places.BATCH).write_text(text)
    with pytest.raises(UserError, match=r'batch.json cannot be read .* Delete its directory'):
        find(tmp_path)
