"""A bundle is its run in one file: the same predictions and scores, and no content but that of its digest."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

import bhcnet_jax
from bhcnet_jax import bundle
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import bundles, trained
from bhcnet_jax.records import merge, recipes

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 16, 16), np.uint8)


def bundle_of(run, out, *more):
    bundle.main([str(run), f'--out={out}', *more])
    return out


@pytest.fixture(scope='module')
def packed(crossed, tmp_path_factory):
    return bundle_of(crossed, tmp_path_factory.mktemp('bundles') / 'model.bhc')


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def refusal(path, trials=''):
    with pytest.raises(UserError) as refused:
        bhcnet_jax.load(path, trials)
    assert '\n' not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize('name', ['crossed', 'equalised'])
@pytest.mark.slow
def test_a_bundle_alone_predicts_bit_for_bit_what_its_run_does(name, request, heads, tmp_path):
    run = request.getfixturevalue(name)
    model, moved = bhcnet_jax.load(run), tmp_path / 'moved' / 'away.bhc'
    moved.parent.mkdir()
    shutil.move(bundle_of(run, tmp_path / 'model.bhc'), moved)
    other = bhcnet_jax.load(moved)
    np.testing.assert_array_equal(other.member_logits(IMAGES), model.member_logits(IMAGES))
    np.testing.assert_array_equal(other.preprocess(heads / '07.png'), model.preprocess(heads / '07.png'))
    for attribute in ('name', 'recipe', 'members', 'dataset', 'class_names', 'fingerprint', 'training_images'):
        assert getattr(other, attribute) == getattr(model, attribute)


def test_trials_choose_what_a_bundle_holds(crossed, tmp_path):
    path = bundle_of(crossed, tmp_path / 'one.bhc', '--trials=seed=1 fold=0')
    assert bhcnet_jax.load(path).members == bhcnet_jax.load(crossed, 'seed=1 fold=0').members
    assert 'a bundle is used as a whole' in refusal(path, 'seed=1')


def test_the_same_run_gives_the_same_bytes(packed, crossed, tmp_path):
    assert bundle_of(crossed, tmp_path / 'again.bhc').read_bytes() == packed.read_bytes()


def test_scores_and_intervals_are_those_of_the_leaderboard(packed, crossed):
    told = json.loads(contents(packed)['model.json'])['test']
    row = recipes.make(merge.merge([crossed])).iloc[0]
    assert told['metrics'].keys() == set(recipes.METRICS)
    for name, metric in told['metrics'].items():
        recorded = [row[name], *(row[f'{name}_{end}'] for end in ('low', 'high', 'spread'))]
        np.testing.assert_array_equal(np.array(list(metric.values()), float), recorded)
    assert None not in told['metrics']['auc'].values()
    assert (told['images'], told['positives'], told['folds'], told['seeds']) == (12, 6, '2/4', 2)


def test_the_card_tells_scores_their_n_and_the_limits(packed, crossed, tmp_path):
    card = contents(packed)['MODEL_CARD.md'].decode()
    accuracy = json.loads(contents(packed)['model.json'])['test']['metrics']['accuracy']
    assert f'| accuracy | {accuracy["value"]:.3f} | {accuracy["low"]:.3f} to {accuracy["high"]:.3f} |' in card
    assert 'On 12 images' in card and 'For research only' in card and 'PHANTOM' not in card
    assert 'Their mean, with which this bundle predicts, was not tested' in card
    one = bundle_of(crossed, tmp_path / 'one.bhc', '--trials=seed=1 fold=0')
    assert 'Their mean' not in contents(one)['MODEL_CARD.md'].decode()


def test_a_model_of_synthetic_images_says_so(crossed, tmp_path):
    chosen = merge.merge([crossed])
    chosen.trials['dataset'] = 'PHANTOM'
    bundles.write(trained.read(crossed, chosen), chosen, tmp_path / 'phantom.bhc')
    assert '**Trained on synthetic images (PHANTOM)' in contents(tmp_path / 'phantom.bhc')['MODEL_CARD.md'].decode()


def test_it_holds_the_hash_of_every_training_image_but_no_name_and_no_place_of_files(packed, crossed, heads):
    data = json.loads((crossed / 'data.json').read_text())
    hashes = json.loads(contents(packed)['training_images.json'])['pixel_sha256']
    assert hashes == sorted(data['pixel_sha256'].values()) and len(hashes) == 24
    everything = packed.read_bytes()
    assert str(heads).encode() not in everything and b'07.png' not in everything


def test_every_single_changed_byte_is_found(packed, tmp_path):
    intact = packed.read_bytes()
    for place in np.linspace(0, len(intact) - 1, 200).astype(int):
        damaged = bytearray(intact)
        damaged[place] ^= 255
        (tmp_path / 'damaged.bhc').write_bytes(damaged)
        try:
            model = bhcnet_jax.load(tmp_path / 'damaged.bhc')
        except UserError:
            continue
        assert model.members and contents(tmp_path / 'damaged.bhc') == contents(packed)  # in the zip's own dates


@pytest.mark.parametrize('name', ['weights.safetensors', 'model.json', 'training_images.json', 'MODEL_CARD.md'])
def test_a_changed_missing_or_added_file_has_the_wrong_digest(name, packed, tmp_path):
    files = contents(packed)
    for changed in (
        {**files, name: files[name] + b' '},
        {key: value for key, value in files.items() if key != name},
        {**files, 'other': b''},
    ):
        assert 'its digest is not that of its content' in refusal(rewrite(tmp_path / 'x.bhc', changed))


def test_a_changed_manifest_has_the_wrong_digest(packed, tmp_path):
    files = contents(packed)
    manifest = json.loads(files['manifest.json'])
    files['model.json'] += b' '
    manifest['files']['model.json'] = hashlib.sha256(files['model.json']).hexdigest()
    files['manifest.json'] = json.dumps(manifest)
    assert 'its digest is not that of its content' in refusal(rewrite(tmp_path / 'x.bhc', files))


def test_a_truncated_file_and_another_file_are_refused(packed, tmp_path):
    for size in (0, 10, packed.stat().st_size // 2, packed.stat().st_size - 1):
        (tmp_path / 'cut.bhc').write_bytes(packed.read_bytes()[:size])
        assert 'not a bundle of python -m bhcnet_jax.bundle, or cut short' in refusal(tmp_path / 'cut.bhc')
    assert 'not a bundle' in refusal(rewrite(tmp_path / 'zip.bhc', {'a': b''}))
    assert "its format is 'other'" in refusal(
        rewrite(tmp_path / 'other.bhc', {'manifest.json': '{"format": "other", "version": 1}'})
    )


def test_a_compressed_file_is_not_unpacked(packed, tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.bhc', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents(packed).items():
            archive.writestr(name, content)
    assert 'not a bundle' in refusal(tmp_path / 'x.bhc')


def test_a_newer_version_is_refused_as_such(packed, tmp_path):
    files = contents(packed)
    files['manifest.json'] = json.dumps({**json.loads(files['manifest.json']), 'version': bundles.VERSION + 1})
    assert 'newer than the 2 that is read here' in refusal(rewrite(tmp_path / 'x.bhc', files))


def test_a_recipe_of_another_version_of_the_code_is_refused(crossed, tmp_path, monkeypatch):
    described = bundles._describe
    monkeypatch.setattr(
        bundles, '_describe', lambda *a: {**(told := described(*a)), 'recipe': {**told['recipe'], 'new_key': 1}}
    )
    said = refusal(bundle_of(crossed, tmp_path / 'x.bhc'))
    assert 'does not know its recipe' in said and 'new_key' in said


@pytest.mark.slow
def test_the_commands_run_as_processes_of_their_own(crossed, heads, tmp_path):
    def run(*words):
        command = [sys.executable, '-m', *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, '')

    run('bhcnet_jax.bundle', crossed, '--out=model.bhc')
    run('bhcnet_jax.predict', 'model.bhc', heads, '--out=from_bundle')
    run('bhcnet_jax.predict', crossed, heads, '--out=from_run')
    one, other = (pd.read_csv(tmp_path / name / 'predictions.csv') for name in ('from_bundle', 'from_run'))
    pd.testing.assert_frame_equal(one, other)


def test_mistakes_are_one_line(crossed, tmp_path, refusal):
    for arguments, message in (
        ((tmp_path / 'missing', tmp_path / 'x.bhc'), 'no such directory'),
        ((crossed, tmp_path / 'missing/x.bhc'), 'cannot be written'),
    ):
        assert message in refusal(bundle_of, *arguments)


def test_a_bundle_of_version_1_is_still_read_and_predicts_the_same(packed, tmp_path):
    files = contents(packed)
    described = json.loads(files['model.json'])
    for name in ('calibration', 'outliers'):
        del described[name]
    files['model.json'] = json.dumps(described).encode()
    del files['manifest.json']
    old = {**files, 'manifest.json': json.dumps(bundles._manifest(files, version=1))}
    model = bhcnet_jax.load(rewrite(tmp_path / 'old.bhc', old))
    assert model.calibration is None and model.outliers is None
    np.testing.assert_array_equal(model.logits(IMAGES), bhcnet_jax.load(packed).logits(IMAGES))
