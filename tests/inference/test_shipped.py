"""Networks that have seen drawn heads alone: how they leave a run, how they are measured and marked."""

import contextlib
import json
import sqlite3
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bhcnet_jax
import simple_heads
from bhcnet_jax import bundle, evaluate, predict
from bhcnet_jax.datasets.phantom import heads as drawn_heads
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import bundles
from bhcnet_jax.inference import trained as of_run
from bhcnet_jax.plan import phases
from bhcnet_jax.records.database import Results

pytestmark = pytest.mark.slow

PHANTOM = {
    'phases': ('phantom', 'balanced'), 'phantom__epochs': 2, 'phantom__samples': 64, 'augment__policy': 'none',
    'phantom__mask': 1.0, 'model__mask_head': True, 'recipe': 'tiny teacher',
}  # fmt: skip
FOLDS = 'split.scheme=kfold split.folds=4 split.fold=0:2 seed=0:2'


@pytest.fixture(scope='module', autouse=True)
def _simple_heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_heads, 'draw', simple_heads.draw)
        yield


@pytest.fixture(scope='module')
def pretrained(trained):
    """Two folds and two seeds, so that two pre-trainings are shared."""
    return trained('pretrained', PHANTOM, sweep=FOLDS)


@pytest.fixture(scope='module')
def bare(pretrained, tmp_path_factory):
    return pack(pretrained, tmp_path_factory.mktemp('bundles') / 'bare.bhc')


@pytest.fixture(scope='module')
def clinic(tmp_path_factory):
    """A labelled folder of 40 images of noise, of which nobody can tell the classes."""
    folder, generator = tmp_path_factory.mktemp('other') / 'clinic', np.random.default_rng(0)
    folder.mkdir()
    rows = ['file,label,group', *(f'{number:02}.png,{number % 2},p{number}' for number in range(40))]
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (40, 40), np.uint8)).save(folder / f'{number:02}.png')
    (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
    return folder


@pytest.fixture(scope='module')
def measured(pretrained, bare, clinic, tmp_path_factory):
    """The bundle with what was found of it on the clinic's images, and the evaluation."""
    folder = tmp_path_factory.mktemp('measured')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(folder / 'tfds'))
        evaluate.main([str(bare), f'--data={clinic}', f'--out={folder}'])
    return pack(pretrained, folder / 'phantom.bhc', f'--evaluation={folder}/evaluation.json'), folder


@pytest.fixture
def shipped(measured, monkeypatch):
    monkeypatch.setattr(bundles, 'SHIPPED', measured[0])
    return measured[0]


def pack(run, out, *more):
    bundle.main([str(run), '--phase=phantom', f'--out={out}', *more])
    return out


def answer(*arguments):
    with pytest.raises(SystemExit) as ended:
        predict.main([str(each) for each in arguments])
    return ended.value.code


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_bundle_of_the_phase_holds_one_network_a_seed_as_it_was_before_real_images(pretrained, bare, heads):
    model = bhcnet_jax.load(bare)
    assert [each.seed for each in model.members] == [0, 1]
    with contextlib.closing(sqlite3.connect(pretrained / 'results.sqlite')) as database:
        rows = database.execute("SELECT trial_id FROM trials WHERE status = 'PRETRAINED'").fetchall()
    assert {each.trial_id for each in model.members} == {row[0] for row in rows}
    assert model.config.phases == ('phantom',) and model.training_images == frozenset()
    image = model.preprocess(heads / '07.png')[None]
    assert (model.member_logits(image) != bhcnet_jax.load(pretrained, 'fold=0').member_logits(image)).all()


def test_a_run_of_the_phase_alone_gives_the_same_weights(trained, bare, tmp_path):
    alone = trained('alone', PHANTOM | {'phases': ('phantom',)}, sweep=FOLDS)
    assert bhcnet_jax.load(pack(alone, tmp_path / 'alone.bhc')).weights_sha256 == bhcnet_jax.load(bare).weights_sha256
    assert 'PHANTOM-TRAINED' in bhcnet_jax.load(alone, 'seed=0 fold=0').trained_on


def test_a_run_whose_later_phases_never_began_gives_them_too(trained, pretrained, bare, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killing(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Results, 'inherit', killing)
        trained('cut_short', PHANTOM, sweep=FOLDS)
    cut_short = pretrained.parent / 'cut_short'
    assert bhcnet_jax.load(pack(cut_short, tmp_path / 'cut.bhc')).weights_sha256 == bhcnet_jax.load(bare).weights_sha256


def test_the_digest_of_the_weights_is_that_of_the_run_and_of_no_other_seed(pretrained, bare):
    assert of_run.read_pretrained(pretrained).weights_sha256 == bhcnet_jax.load(bare).weights_sha256
    seeds = {of_run.read_pretrained(pretrained, f'seed={seed}').weights_sha256 for seed in (0, 1)}
    assert len(seeds) == 2


def test_a_bundle_names_the_drawing_that_its_networks_saw_unless_it_has_changed_since(pretrained, bare, monkeypatch):
    assert bhcnet_jax.load(bare).fingerprint == phases.drawing_version()
    monkeypatch.setattr(phases, 'drawing_version', lambda: 'other')
    assert of_run.read_pretrained(pretrained).fingerprint == 'drawn by another version'


def test_the_number_in_a_bundle_is_that_of_the_evaluation(measured):
    path, folder = measured
    found = json.loads((folder / 'evaluation.json').read_text())['results'][0]
    (told,) = bhcnet_jax.load(path).measured
    auc = found['metrics']['auc']
    assert (told.auc, told.low, told.high) == (auc['value'], auc['low'], auc['high'])
    assert (told.images, told.positives, told.dataset, told.looks) == (40, 20, 'clinic', 1)


def test_an_evaluation_of_other_weights_or_of_synthetic_images_is_refused(pretrained, measured, tmp_path, refusal):
    found = json.loads((measured[1] / 'evaluation.json').read_text())
    file = tmp_path / 'evaluation.json'

    def refused(evaluation, *more):
        file.write_text(json.dumps(evaluation))
        arguments = [str(pretrained), '--phase=phantom', f'--out={tmp_path}/m.bhc', f'--evaluation={file}', *more]
        return refusal(bundle.main, arguments)

    assert 'of other weights' in refused(found, '--trials=seed=0')
    without = {**found, 'model': {name: each for name, each in found['model'].items() if name != 'weights_sha256'}}
    assert 'of other weights' in refused(without)
    assert 'synthetic images' in refused({**found, 'data': {**found['data'], 'dataset': 'PHANTOM'}})
    file.unlink()
    assert 'No such file' in refusal(
        bundle.main, [str(pretrained), '--phase=phantom', f'--out={tmp_path}/m.bhc', f'--evaluation={file}']
    )
    assert not (tmp_path / 'm.bhc').exists()


def test_without_a_model_the_shipped_one_answers_and_says_so_with_its_number(shipped, heads, tmp_path, capsys):
    assert answer(heads / '00.png', heads / '01.png', f'--out={tmp_path}') == 0
    number = str(bhcnet_jax.load('phantom').measured[0])
    first, last = capsys.readouterr().out.splitlines()
    assert 'is no model, so that of the package answers' in first and number in first and 'PHANTOM-TRAINED' in first
    assert last.startswith('2 images by 2 networks of tiny teacher, trained on drawn heads (PHANTOM-TRAINED)')
    rows = pd.read_csv(tmp_path / 'predictions.csv')
    assert set(rows.trained_on) == {'drawn heads (PHANTOM-TRAINED)'} and set(rows.measured) == {number}
    told = json.loads((tmp_path / 'predictions.json').read_text())
    assert told['measured'][0]['images'] == 40 and 'PHANTOM-TRAINED' in told['trained_on']
    page = (tmp_path / 'predictions.html').read_text()
    assert 'PHANTOM-TRAINED.</span> Predictions of' in page and number in page
    assert 'means nothing' not in page


def test_the_shipped_model_can_be_named_and_a_path_of_that_name_is_a_path(shipped, heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = bhcnet_jax.load('phantom').preprocess(heads / '00.png')[None]
    assert answer('phantom', heads / '00.png', '--out=named') == answer(heads / '00.png', '--out=unnamed') == 0
    expected = bhcnet_jax.load('phantom').predict(image)
    for out in ('named', 'unnamed'):
        np.testing.assert_allclose(pd.read_csv(f'{out}/predictions.csv').probability, expected, atol=1e-6)
    with pytest.raises(UserError, match='no such directory'):
        bhcnet_jax.load('./phantom')


def test_a_zip_a_folder_and_a_file_of_images_are_no_models(shipped, heads, tmp_path, capsys):
    Image.new('L', (30, 30)).save(tmp_path / 'a.png')
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        archive.write(tmp_path / 'a.png', 'a.png')
    for path in (tmp_path / 'a.png', tmp_path / 'images.zip', heads):
        assert answer(path, f'--out={tmp_path}/out') == 0
        assert 'is no model' in capsys.readouterr().out


def test_a_bundle_is_a_model_whatever_its_name_and_needs_images(bare, heads, tmp_path, refusal, capsys):
    renamed = tmp_path / 'renamed.zip'
    renamed.write_bytes(bare.read_bytes())
    assert answer(renamed, heads / '00.png', f'--out={tmp_path}/out') == 0
    assert 'is no model' not in capsys.readouterr().out
    (tmp_path / 'damaged.bhc').write_bytes(bare.read_bytes()[:500])
    damaged = ['damaged.bhc', str(heads / '00.png'), f'--out={tmp_path}/out']
    assert 'cut short' in refusal(predict.main, [str(tmp_path / damaged[0]), *damaged[1:]])
    assert 'expected images after it' in refusal(predict.main, [str(bare), f'--out={tmp_path}/out'])


def test_a_package_without_the_file_says_how_to_make_it(heads, tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(bundles, 'SHIPPED', tmp_path / 'nowhere.bhc')
    assert '--phase=phantom' in refusal(predict.main, [str(heads), f'--out={tmp_path}/out'])


def test_the_card_is_marked_and_has_what_was_measured(measured, bare):
    card = contents(measured[0])['MODEL_CARD.md'].decode()
    assert '**PHANTOM-TRAINED' in card and '| clinic | ' in card and '| 40 | 20 |' in card
    assert 'On images from elsewhere' not in contents(bare)['MODEL_CARD.md'].decode()
    assert json.loads(contents(measured[0])['training_images.json']) == {'pixel_sha256': []}


def test_a_run_without_the_phase_has_no_such_networks(crossed, tmp_path, refusal):
    told = refusal(bundle.main, [str(crossed), '--phase=phantom', f'--out={tmp_path}/m.bhc'])
    assert 'no phase phantom in it' in told


@pytest.mark.skipif(not bundles.SHIPPED.exists(), reason='this copy comes without phantom.bhc')
def test_the_shipped_file_is_phantom_trained_and_measured_on_real_images():
    model = bhcnet_jax.load('phantom')
    assert 'PHANTOM-TRAINED' in model.trained_on and model.training_images == frozenset()
    assert model.measured and bundles.SHIPPED.stat().st_size < 20e6
