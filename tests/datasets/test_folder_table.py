"""Labelled folders as people have them: class folders, and csv files with names, marks and labels of their own."""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bhcnet_jax.datasets import finding, input_pipeline
from bhcnet_jax.datasets.folder import source, table
from bhcnet_jax.errors import UserError


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.delenv('HEAD_CT_DIR', raising=False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))  # tfds leaves empty folders there


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png to d.png; labels 0 1 0 1 in labels.csv."""
    return write(tmp_path / 'scans', *(f'{name}.png' for name in 'abcd'), csv='file,label\n' + rows('0101'))


def rows(labels: str, mark: str = ',') -> str:
    return ''.join(f'{name}.png{mark}{label}\n' for name, label in zip('abcd', labels, strict=True))


def write(root: Path, *names: str, csv: str = '') -> Path:
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), 20 * place, np.uint8)).save(root / name)
    if csv:
        (root / 'labels.csv').write_text(csv)
    return root


def load(path: Path | str, name: str = 'folder', **keys: str) -> input_pipeline.ImageSet:
    return input_pipeline.load(ConfigDict({'name': name, 'dir': str(path), 'image_size': 8, **keys}))


def error_line(path: Path | str, **keys: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **keys)
    return str(caught.value)


def test_each_folder_is_a_class_and_the_second_name_is_positive(tmp_path: Path) -> None:
    root = write(tmp_path / 'chest', 'sick/b.png', 'normal/z.png', 'sick/deep/a.png', 'normal/y.jpg')
    (root / 'sick' / 'notes.txt').write_text('no image')
    found = load(root)
    assert found.ids == ('normal/y.jpg', 'normal/z.png', 'sick/b.png', 'sick/deep/a.png')
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.class_names == ('normal', 'sick')
    assert found.name == found.label == 'chest'
    assert load(tmp_path / 'chest', name='auto').fingerprint == found.fingerprint


def test_the_positive_class_can_be_said_and_a_sound_one_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / 'chest', 'bleed/a.png', 'normal/b.png')
    sorted_set = load(root)
    assert (sorted_set.labels.tolist(), sorted_set.class_names) == ([0, 1], ('bleed', 'normal'))
    assert "the positive class is 'normal'" in caplog.text and "dataset.positive='bleed'" in caplog.text
    caplog.clear()
    said = load(root, positive='bleed')
    assert (said.labels.tolist(), said.class_names) == ([1, 0], ('normal', 'bleed'))
    assert said.fingerprint != sorted_set.fingerprint and not caplog.text
    assert "classes 'bleed', 'normal'; config.dataset.positive is 'x'" in error_line(root, positive='x')


def test_class_folders_are_found_in_a_zip_and_below_folders_that_hold_one_alone(tmp_path: Path) -> None:
    root = write(tmp_path / 'out' / 'chest' / 'images', 'no/a.png', 'yes/b.png').parents[1]
    archive = Path(shutil.make_archive(str(tmp_path / 'pack' / 'chest'), 'zip', root))
    found = load(root)
    assert found.class_names == ('no', 'yes') and found.name == 'out'
    for place in (archive, archive.parent):
        zipped = load(place)
        assert zipped.fingerprint == found.fingerprint and zipped.name == 'chest'


@pytest.mark.parametrize(('names', 'message'), [
    (('a/1.png', 'b/2.png', 'c/3.png'), "makes 3 classes ('a', 'b', 'c'), expected two"),
    (('train/a/1.png', 'test/b/2.png'), "'test' is a part of a set, expected a folder for each class"),
    (('a/1.png', 'b/2.png', 'c.png'), 'c.png lies beside the folders of the classes'),
    (('a/1.png', 'a/2.png'), '2 files, no labels.csv'),
])  # fmt: skip
def test_folders_that_are_not_two_classes_end_in_one_line(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    assert message in error_line(write(tmp_path / 'set', *names))


def test_a_file_name_that_is_not_utf8_ends_in_one_line(tmp_path: Path) -> None:
    root = write(tmp_path / 'set', 'a/1.png', 'b/2.png')
    os.rename(root / 'a' / '1.png', os.fsencode(root / 'a') + b'/\xff.png')
    assert 'is no name in UTF-8' in error_line(root)


@pytest.mark.parametrize('text', [
    'file;label\n' + rows('0101', ';'),
    'file\tlabel\n' + rows('0101', '\t'),
    'Image,Finding\n' + rows('0101'),
    'finding,image\n0,a.png\n1,b.png\n0,c.png\n1,d.png\n',
    ',path,class\n0,a.png,0\n1,b.png,1\n2,c.png,0\n3,d.png,1\n',
    'file,label\na.png,false\nb.png,True\nc.png,0.0\nd.png,1.0\n',
    'file,label\nA.PNG,0\nb.Png,1\nc.png,0\nd.png,1\n',
    'file,label\na,0\nb,1\nc,0\nd,1\n',
    'file,label\nROOT/a.png,0\n./b.png,1\nc.png,0\nROOT/d.png,1\n',
    'filename,age,label\na.png,3,0\nb.png,4,1\nc.png,3,0\nd.png,4,1\n',
], ids=['semicolons', 'tabs', 'other names', 'other order', 'numbered by pandas', 'true and 1.0', 'case',
        'no extension', 'absolute', 'a further column'])  # fmt: skip
def test_a_csv_as_people_write_it_is_the_same_set(folder: Path, text: str) -> None:
    plain = load(folder)
    (folder / 'labels.csv').write_text(text.replace('ROOT', str(folder)))
    found = load(folder)
    assert (found.ids, found.fingerprint) == (plain.ids, plain.fingerprint)
    assert found.class_names == ('negative', 'positive')
    relative = load(os.path.relpath(folder))
    assert relative.fingerprint == plain.fingerprint and relative.name == 'scans'


def test_words_are_classes_whatever_their_case(folder: Path) -> None:
    (folder / 'labels.csv').write_text('file,label\n' + rows('xXyY'))
    found = load(folder)
    assert (found.labels.tolist(), [name.lower() for name in found.class_names]) == ([0, 0, 1, 1], ['x', 'y'])
    assert load(folder, positive='X').labels.tolist() == [1, 1, 0, 0]


def test_further_columns_are_kept_by_name_and_patients_are_groups(folder: Path) -> None:
    (folder / 'labels.csv').write_text(
        'image,sex,patient_id,label,scanner\na.png,f,7,0,x\nb.png,m,7,1,\nc.png,f,8,0,y\nd.png,m,9,1,"y, z"\n'
    )
    found = load(folder)
    assert found.columns == {'sex': ('f', 'm', 'f', 'm'), 'scanner': ('x', '', 'y', 'y, z')}
    assert found.groups == ('7', '7', '8', '9')


def test_columns_that_cannot_be_told_are_asked_for_and_can_be_said(folder: Path) -> None:
    text = 'scan,left,right\n' + ''.join(f'{name}.png,{k % 2},{1 - k % 2}\n' for k, name in enumerate('abcd'))
    (folder / 'labels.csv').write_text(text)
    line = error_line(folder)
    assert "columns 'scan', 'left', 'right'" in line and '--config.dataset.columns=' in line
    assert load(folder, columns='scan,right').labels.tolist() == [1, 0, 1, 0]
    grouped = load(folder, columns='scan, left, right')
    assert (grouped.labels.tolist(), grouped.groups) == ([0, 1, 0, 1], ('1', '0', '1', '0'))
    assert "config.dataset.columns is 'scan,middle'" in error_line(folder, columns='scan,middle')
    assert "config.dataset.columns is 'scan'" in error_line(folder, columns='scan')


@pytest.mark.parametrize(('row', 'message'), [
    ('/elsewhere/a.png,0', 'no file /elsewhere/a.png. Write paths as they are below'),
    ('C:\\scans\\a.png,0', 'no file C:/scans/a.png. Correct the name'),
    ('e.png,0', 'no file e.png. Correct the name, or remove the row'),
    ('A,0', 'line 5: a.png is listed twice'),
])  # fmt: skip
def test_a_path_that_names_no_file_says_what_to_do(folder: Path, row: str, message: str) -> None:
    (folder / 'labels.csv').write_text(f'file,label\nb.png,1\nc.png,0\n{"a" if "A," in row else "d"}.png,1\n{row}\n')
    assert message in error_line(folder)


def test_a_name_that_two_files_have_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / 'set', 'x/a.png', 'y/a.png', csv='file,label\na.png,0\ny/a.png,1\n')
    assert 'line 2: a.png is there twice (x/a.png, y/a.png)' in error_line(root)
    (root / 'labels.csv').write_text('file,label\nx/a.png,0\ny/a.png,1\n')
    assert load(root).ids == ('x/a.png', 'y/a.png')


def test_a_set_is_called_as_its_folder_or_as_one_says_but_never_as_a_published_one(folder: Path) -> None:
    assert load(folder).label == 'scans'
    assert load(folder, label='Chest X-ray').label == 'Chest X-ray'
    assert load(folder, label='Head_CT').label == 'Head_CT (folder)'
    assert load(folder, label='PHANTOM').label == 'PHANTOM (folder)'
    assert "config.dataset.label is 'a/b'" in error_line(folder, label='a/b')
    other = folder.rename(folder.with_name('phantom'))
    assert load(other).label == 'phantom (folder)'


def test_a_folder_that_is_not_utf8_is_read_and_its_name_can_be_printed(folder: Path) -> None:
    target = os.fsencode(folder.parent) + b'/\xff'
    os.rename(folder, target)
    found = load(os.fsdecode(target))
    assert found.label == '\\udcff' and len(found.ids) == 4


def test_a_csv_is_bounded_before_it_is_parsed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('labels.csv', 'file,label\n' + 'a.png,0\n' * 4_000_000)
    assert 'labels.csv: more than 1048576 lines' in error_line(tmp_path / 'bomb.zip')
    monkeypatch.setattr(table, 'MAX_BYTES', 20)
    assert 'labels.csv: expected at most 20 bytes' in error_line(folder)


@pytest.mark.parametrize('damage', ['lzma', 'bzip2', 'deflate', 'unknown', 'no name', 'utf-8', 'encrypted'])
def test_a_damaged_zip_ends_in_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    kind = {'lzma': zipfile.ZIP_LZMA, 'bzip2': zipfile.ZIP_BZIP2}.get(damage, zipfile.ZIP_DEFLATED)
    target = tmp_path / 'set.zip'
    with zipfile.ZipFile(target, 'w', kind) as archive:
        archive.write(folder / 'labels.csv', 'labels.csv')
        for name in 'abcd':
            archive.write(folder / f'{name}.png', f'{name}.png')
        start = archive.getinfo('a.png').header_offset + 30 + len('a.png')
    data = bytearray(target.read_bytes())
    place = data.index(b'PK\1\2', data.index(b'PK\1\2') + 1)  # a.png in the central directory
    if damage in ('lzma', 'bzip2', 'deflate'):
        data[start + 4 : start + 30] = b'\xff' * 26
    if damage == 'unknown':
        data[place + 10] = data[data.index(b'PK\3\4', 10) + 8] = 77
    if damage == 'encrypted':
        data[place + 8] |= 1
        data[data.index(b'PK\3\4', 10) + 6] |= 1
    if damage == 'utf-8':
        data[place + 9] |= 8  # says that the name is UTF-8
        data[place + 46] = 0xFF
    target.write_bytes(data)
    if damage == 'no name':
        with zipfile.ZipFile(target, 'a') as archive:
            archive.writestr(zipfile.ZipInfo(''), b'')
    assert 'set.zip' in error_line(target)


def test_a_zip_of_another_compression_is_read(folder: Path, tmp_path: Path) -> None:
    for name, kind in (('b.zip', zipfile.ZIP_BZIP2), ('l.zip', zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / name, 'w', kind) as archive:
            for path in folder.iterdir():
                archive.write(path, path.name)
        assert load(tmp_path / name).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize('name', ['model.h5', 'paper.pdf', 'notes.txt', 'a.eps', 'scan.grib', 'film.mpg'])
def test_a_file_beside_the_images_that_is_none_needs_no_row(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b'no image')
    assert len(load(folder).ids) == 4


def test_a_published_set_takes_no_columns_and_no_class(tmp_path: Path) -> None:
    root = write(tmp_path / 'set', '000.png', csv='id,hemorrhage\n0,1\n')
    assert source.is_laid_out(source.find(root), finding.LAYOUTS['head_ct'])
    with pytest.raises(UserError, match="positive 'hemorrhage', but this set has a fixed form"):
        load(root, name='head_ct', positive='hemorrhage')
