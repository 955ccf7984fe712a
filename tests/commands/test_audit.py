"""What the audit finds on sets with planted leaks, and on the real one."""

import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from bhcnet_jax import audit
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.plan import groups


def _image_set(seed=0, n=40):
    """Noise whose labels no feature tells apart but by chance."""
    rng = np.random.default_rng(seed)
    return input_pipeline.ImageSet(
        name='folder',
        synthetic=False,
        fingerprint='ab' * 32,
        ids=tuple(f'{index:03d}.png' for index in range(n)),
        images=(images := rng.integers(0, 256, (n, 32, 32), np.uint8)),
        thumbnails=images,
        labels=rng.permutation(np.arange(n, dtype=np.int32) % 2),
        groups=('',) * n,
        pixel_sha256=tuple(map(str, range(n))),
        heights=rng.integers(300, 500, n).astype(np.int32),
        widths=rng.integers(300, 500, n).astype(np.int32),
        modes=('RGB',) * n,
        coloured=np.zeros(n, bool),
        file_bytes=rng.integers(9000, 30000, n).astype(np.int32),
        class_names=('normal', 'hemorrhage'),
    )


def _audit(image_set):
    return audit.audit(image_set, groups.find_groups(image_set))


def _shortcut(found, feature):
    return next(shortcut for shortcut in found['shortcuts'] if shortcut['feature'] == feature)


def _text(found):
    printed = io.StringIO()
    audit.report(found, Console(width=120, file=printed))
    return printed.getvalue()


def test_a_planted_width_shortcut_comes_first():
    image_set = _image_set()
    widths = np.where(image_set.labels == 0, 400, 350) + np.arange(40, dtype=np.int32) % 7
    found = _audit(dataclasses.replace(image_set, widths=widths.astype(np.int32)))
    assert found['shortcuts'][0] | {'medians': [0, 0]} == {
        'feature': 'width, pixels',
        'auc': 1.0,
        'low': None,
        'high': None,
        'n': 40,
        'higher_in': 'normal',
        'medians': [0, 0],
    }


def test_shortcut_aucs_have_no_direction_and_an_interval_around_them():
    image_set = _image_set(seed=3)
    found = _audit(image_set)
    mirrored = _audit(dataclasses.replace(image_set, labels=1 - image_set.labels))
    for shortcut in found['shortcuts']:
        other = _shortcut(mirrored, shortcut['feature'])
        assert shortcut['auc'] == pytest.approx(other['auc'], abs=1e-4)
        assert shortcut['auc'] >= 0.5
        if shortcut['low'] is not None:
            assert shortcut['low'] < shortcut['auc'] < shortcut['high']
            assert shortcut['low'] == pytest.approx(other['low'], abs=1e-4)
    values = image_set.images.mean(axis=(1, 2))
    normal, hemorrhage = values[image_set.labels == 0], values[image_set.labels == 1]
    area = stats.mannwhitneyu(hemorrhage, normal).statistic / (len(normal) * len(hemorrhage))
    assert _shortcut(found, 'mean grey')['auc'] == pytest.approx(max(area, 1 - area), abs=1e-4)


def test_alpha_and_colour_modes_are_counted_by_class():
    image_set = _image_set()
    modes = tuple('RGBA' if label == 0 else 'L' for label in image_set.labels)
    found = _audit(dataclasses.replace(image_set, modes=modes))
    assert found['modes'] == {'L': {'normal': 0, 'hemorrhage': 20}, 'RGBA': {'normal': 20, 'hemorrhage': 0}}
    assert _shortcut(found, 'alpha channel')['auc'] == _shortcut(found, 'colour mode')['auc'] == 1.0


def test_files_with_coloured_pixels_are_counted_by_class():
    image_set = _image_set()
    found = _audit(dataclasses.replace(image_set, coloured=image_set.labels == 1))
    assert found['coloured'] == {'normal': 0, 'hemorrhage': 20}
    assert _shortcut(found, 'coloured pixels')['auc'] == 1.0
    assert 'coloured pixels' in _text(found)


def test_duplicates_are_listed_and_label_conflicts_are_counted():
    image_set = _image_set()
    a = int(np.flatnonzero(image_set.labels == 0)[0])
    b, c = np.flatnonzero(image_set.labels == 1)[:2].tolist()
    digests, images = list(image_set.pixel_sha256), image_set.images.copy()
    digests[b], images[b] = digests[a], images[a]
    groups = tuple('p' if index in (a, c) else '' for index in range(40))
    same = {'pixel_sha256': tuple(digests), 'images': images, 'thumbnails': images}
    found = _audit(dataclasses.replace(image_set, groups=groups, **same))
    assert found['groups'] == [[f'{index:03d}.png' for index in sorted((a, b, c))]]
    assert found['reasons'] == {'exact': 1, 'published': 1}
    assert found['conflicts'] == 1  # the published pair may well differ
    exact = next(pair for pair in found['pairs'] if pair['reason'] == 'exact')
    assert {exact['a'], exact['b']} == {f'{a:03d}.png', f'{b:03d}.png'}
    assert exact['similarity'] == 1.0
    assert sorted(exact['labels']) == [0, 1]
    assert exact['a'] in _text(found)


def test_look_alikes_of_two_patients_are_listed_apart():
    grouping = groups.Grouping(np.arange(40), (), (groups.Pair(3, 8, 'near', 0.9),), ('1 [pair] of two patients.',))
    found = audit.audit(_image_set(), grouping)
    assert (found['pairs'], found['reasons'], found['groups']) == ([], {}, [])
    assert [(pair['a'], pair['b']) for pair in found['apart']] == [('003.png', '008.png')]
    text = _text(found)
    assert 'Look-alikes that are not kept together: 1' in text
    assert '1 [pair] of two patients.' in text


def test_what_is_found_is_strict_json():
    found = _audit(_image_set())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_set_of_one_class_is_audited_without_aucs():
    image_set = _image_set()
    found = _audit(dataclasses.replace(image_set, labels=np.ones(40, np.int32)))
    assert {shortcut['auc'] for shortcut in found['shortcuts']} == {None}
    json.dumps(found, allow_nan=False)
    assert 'mean grey' in _text(found)


def test_phantom_is_said_in_every_table_and_in_the_json():
    image_set = dataclasses.replace(_image_set(), name='phantom', synthetic=True)
    found = _audit(image_set)
    assert found['mark'] == 'PHANTOM'
    assert _text(found).count('PHANTOM') == 4  # head line, pairs, modes, shortcuts
    assert 'PHANTOM' not in _text(_audit(_image_set()))


def test_classes_and_files_have_the_names_of_the_set_whatever_is_in_them():
    image_set = _image_set()
    ids = ('a[/b].png', 'case [left].png', *image_set.ids[2:])
    digests = ('same', 'same', *image_set.pixel_sha256[2:])
    images = image_set.images.copy()
    images[1] = images[0]
    widths = (image_set.labels * 100 + 300 + np.arange(40)).astype(np.int32)
    found = _audit(dataclasses.replace(
        image_set, ids=ids, pixel_sha256=digests, images=images, thumbnails=images, widths=widths,
        class_names=('no [bold]finding', 'tumour'),
    ))  # fmt: skip
    text = _text(found)
    assert 'a[/b].png' in text and 'case [left].png' in text and 'no [bold]finding' in text
    assert found['classes'] == {'no [bold]finding': 20, 'tumour': 20}
    assert _shortcut(found, 'width, pixels')['higher_in'] == 'tumour'
    assert 'hemorrhage' not in text and 'hemorrhage' not in json.dumps(found)


@pytest.mark.parametrize('layout', ['csv', 'class folders', 'odd csv'])
def test_the_command_finds_out_which_kind_of_set_it_is(labelled_folder, tmp_path, monkeypatch, capsys, layout):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    folder, extra = labelled_folder, []
    if layout == 'class folders':
        folder = tmp_path / 'scans'
        for number in range(40):
            target = folder / ('sick' if number % 2 else 'healthy') / f'{number:02}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(labelled_folder / f'{number:02}.png', target)
    if layout == 'odd csv':
        folder = tmp_path / 'odd'
        shutil.copytree(labelled_folder, folder)
        lines = (folder / 'labels.csv').read_text().splitlines()[1:]
        rows = '\n'.join(line.replace(',', ';7;') for line in lines)
        (folder / 'labels.csv').write_text(f'scan;age;finding\n{rows}\n')
        extra = ['--columns=scan,finding']
    monkeypatch.setattr('sys.argv', ['audit', f'--dir={folder}', f'--out={tmp_path / "audit.json"}', *extra])
    audit.main()
    found = json.loads((tmp_path / 'audit.json').read_text())
    names = {'class folders': ('healthy', 'sick')}.get(layout, ('negative', 'positive'))
    assert found['classes'] == dict.fromkeys(names, 20)
    assert found['dataset'] == folder.name
    assert folder.name in capsys.readouterr().out


def test_the_command_ends_in_one_line_where_there_is_no_folder(tmp_path, monkeypatch, refusal):
    out = tmp_path / 'audit.json'
    monkeypatch.setattr('sys.argv', ['audit', '--name=folder', f'--dir={tmp_path / "none"}', f'--out={out}'])
    assert 'none' in refusal(audit.main)
    assert not out.exists()


@pytest.mark.slow
def test_the_command_finds_the_known_leaks_of_the_real_set(tmp_path, monkeypatch):
    if not os.environ.get('HEAD_CT_DIR'):
        pytest.skip('HEAD_CT_DIR is not set')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    out = tmp_path / 'audit.json'
    monkeypatch.setattr('sys.argv', ['audit', '--name=head_ct', f'--out={out}'])
    audit.main()
    found = json.loads(out.read_text())
    assert found['reasons']['exact'] == 1
    assert found['reasons']['near'] >= 15
    assert found['conflicts'] == 0
    assert _shortcut(found, 'width, pixels')['auc'] == pytest.approx(0.80, abs=0.01)
    assert found['modes']['RGBA'] == {'normal': 12, 'hemorrhage': 0}
    assert found['coloured'] == {'normal': 42, 'hemorrhage': 23}
