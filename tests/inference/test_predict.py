"""The command: what it reads, what it writes, and what it says of files that it cannot read."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bhcnet_jax
from bhcnet_jax import predict
from bhcnet_jax.inference import model as model_module


def command(*arguments):
    predict.main([str(each) for each in arguments])


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    return ended.value.code


def rows_of(out):
    return pd.read_csv(out / 'predictions.csv')


def grey(seed):
    return np.random.default_rng(seed).integers(0, 256, (30, 20), np.uint8)


def test_the_images_of_a_run_get_the_probabilities_that_it_recorded(crossed, heads, tmp_path, capsys):
    assert run(crossed, heads, f'--out={tmp_path}', '--trials=seed=0 fold=1') == 0
    trial = pd.read_csv(crossed / 'results.csv').query('seed == 0 and fold == 1').trial_id.item()
    recorded = pd.read_csv(crossed / 'predictions.csv').set_index('trial_id').loc[trial]
    found = rows_of(tmp_path).set_index('file')
    assert len(found) == 24 and found.in_training_set.all() and found.spread.isna().all()
    told = found.probability[[f'{heads}/{name}' for name in recorded.image_id]]
    np.testing.assert_allclose(told, recorded.probability, rtol=0, atol=1e-6)
    said = capsys.readouterr()
    assert '24 images by one network of tiny cnn, trained on heads' in said.out and not said.err


def test_json_and_csv_say_the_same_and_an_ensemble_has_a_spread(crossed, heads, tmp_path):
    assert run(crossed, heads, '--out', tmp_path / 'new' / 'folder') == 0
    told, found = json.loads((tmp_path / 'new/folder/predictions.json').read_text()), rows_of(tmp_path / 'new/folder')
    assert len(told['trials']) == 4 and told['positive_class'] == 'positive'
    assert [each['file'] for each in told['predictions']] == found.file.tolist()
    assert [each['spread'] for each in told['predictions']] == found.spread.tolist()
    assert (found.spread > 0).all() and set(found.trained_on) == {told['trained_on']}


def test_files_folders_zips_and_zips_in_folders_are_read(crossed, tmp_path):
    folder = tmp_path / 'images'
    (folder / 'deep/er').mkdir(parents=True)
    Image.fromarray(grey(0)).save(folder / 'deep/er/a.TIF')
    Image.fromarray(grey(1)).save(tmp_path / 'no ending', 'JPEG')
    for archive, name in ((folder / 'inner.zip', 'x/b.bmp'), (tmp_path / 'outer.zip', 'c.webp')):
        with zipfile.ZipFile(archive, 'w') as file:
            Image.fromarray(grey(2)).save(tmp_path / pathlib.Path(name).name)
            file.write(tmp_path / pathlib.Path(name).name, name)
    (folder / 'notes.txt').write_text('no image')
    (folder / '.hidden.png').write_text('no image')
    assert run(crossed, folder, tmp_path / 'outer.zip', tmp_path / 'no ending', '--out', tmp_path / 'out') == 0
    names = [each.removeprefix(f'{tmp_path}/') for each in rows_of(tmp_path / 'out').file]
    assert sorted(names) == ['images/deep/er/a.TIF', 'images/inner.zip/x/b.bmp', 'no ending', 'outer.zip/c.webp']


def test_a_broken_file_is_one_line_and_the_others_go_on(crossed, heads, tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    for number in range(70):
        shutil.copy(heads / '00.png', tmp_path / f'in/{number:02}.png')
    (tmp_path / 'in/03.png').write_bytes((heads / '00.png').read_bytes()[:60])
    (tmp_path / 'in/66.png').write_text('')
    (tmp_path / 'in/bad.zip').write_text('no zip')
    assert run(crossed, tmp_path / 'in', '--out', tmp_path / 'out') == 1
    lines = capsys.readouterr().err.splitlines()
    assert [next(name for name in ('bad.zip', '03.png', '66.png') if name in line) for line in lines] == [
        'bad.zip', '03.png', '66.png',
    ]  # fmt: skip
    found = rows_of(tmp_path / 'out')
    assert len(found) == 68 and found.probability.nunique() == 1
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['predictions']) == 68


def test_only_pixels_of_the_training_set_are_marked_whatever_file_holds_them(crossed, heads, tmp_path):
    with Image.open(heads / '05.png') as known:
        known.save(tmp_path / 'same pixels.bmp')
    changed = np.array(Image.open(heads / '05.png'))
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(tmp_path / 'one pixel off.bmp')
    run(crossed, tmp_path, '--out', tmp_path / 'out')
    assert rows_of(tmp_path / 'out').in_training_set.tolist() == [False, True]


def test_a_run_that_recorded_no_pixels_leaves_the_mark_open(crossed, heads, tmp_path):
    shutil.copytree(crossed, tmp_path / 'old')
    data = json.loads((crossed / 'data.json').read_text())
    del data['pixel_sha256']
    (tmp_path / 'old/data.json').write_text(json.dumps(data))
    run(tmp_path / 'old', heads / '00.png', '--out', tmp_path)
    assert rows_of(tmp_path).in_training_set.isna().all()
    assert json.loads((tmp_path / 'predictions.json').read_text())['predictions'][0]['in_training_set'] is None


@pytest.mark.parametrize('name', ['=1+1.png', '+a.png', '-a.png', '@a.png', '\ta.png'])
def test_a_file_name_is_no_formula_in_a_spreadsheet(name, crossed, heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(heads / '00.png', name)
    assert run(crossed, '--out=out', '--', name) == 0
    with open('out/predictions.csv', newline='') as file:
        assert [row[0] for row in csv.reader(file)] == ['file', f"'{name}"]
    assert json.loads(pathlib.Path('out/predictions.json').read_text())['predictions'][0]['file'] == name


def test_names_with_commas_line_breaks_and_broken_bytes_stay_in_their_cell(crossed, heads, tmp_path):
    names = ['a,b.png', 'c\nd.png', os.fsdecode(b'e\xff.png')]
    (tmp_path / 'in').mkdir()
    for name in names:
        shutil.copy(heads / '00.png', tmp_path / 'in' / name)
    assert run(crossed, tmp_path / 'in', '--out', tmp_path / 'out') == 0
    shown = [each.removeprefix(f'{tmp_path}/in/') for each in rows_of(tmp_path / 'out').file]
    assert shown == ['a,b.png', 'c\nd.png', r'e\udcff.png']


def test_pixels_of_one_batch_are_in_memory_whatever_the_number_of_files(crossed, heads, tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    for number in range(150):
        os.link(heads / '00.png', tmp_path / f'in/{number:03}.png')
    sizes = []
    computed = model_module.Model.member_logits
    monkeypatch.setattr(
        model_module.Model, 'member_logits', lambda self, images: sizes.append(len(images)) or computed(self, images)
    )
    assert run(crossed, tmp_path / 'in', '--out', tmp_path / 'out') == 0
    assert sizes == [64, 64, 22]


def test_mistakes_are_one_line(crossed, heads, tmp_path, refusal):
    out = f'--out={tmp_path}/out'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('')
    assert refusal(command, crossed, tmp_path / 'empty', out).startswith('error: no images in ')
    assert 'no such file or folder' in refusal(command, crossed, tmp_path / 'missing.png', out)
    assert 'no such run directory or bundle' in refusal(command, tmp_path / 'missing', heads, out)
    assert 'Name another folder' in refusal(command, crossed, heads, f'--out={tmp_path}/file')
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_command_runs_as_a_process_of_its_own(crossed, heads, tmp_path):
    command = [sys.executable, '-m', 'bhcnet_jax.predict', crossed, heads / '00.png', '--out', tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, '')
    image = bhcnet_jax.load(crossed).preprocess(heads / '00.png')
    probability = bhcnet_jax.load(crossed).predict(image[None])
    np.testing.assert_allclose(rows_of(tmp_path).probability, probability, atol=1e-6)
