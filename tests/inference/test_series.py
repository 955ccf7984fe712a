"""The command on CT files: series, order, windows, privacy, and what it says of files that hold no CT slice."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

import bhcnet_jax
from bhcnet_jax import predict
from bhcnet_jax.datasets.ct import reader
from bhcnet_jax.datasets.ct.hounsfield import BRAIN, Window, grey_levels
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference.model import Model

nibabel = pytest.importorskip('nibabel')
pydicom = pytest.importorskip('pydicom')


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        predict.main([str(each) for each in arguments])
    return ended.value.code


def table(out, name='predictions'):
    return pd.read_csv(out / f'{name}.csv', keep_default_na=True)


@pytest.fixture(scope='module')
def stack(head_hu):
    """Six different slices in HU, [6, H, W]."""
    return np.stack([np.clip(np.roll(head_hu[::3, ::3], 4 * number) + 9 * number, -1024, None) for number in range(6)])


def predicted(run_directory, hu, window=BRAIN):
    """Probabilities of slices that are put through the window by hand."""
    model = bhcnet_jax.load(run_directory)
    images = [model.preprocess(grey_levels(each.astype(np.float32), window)) for each in hu]
    probabilities = model.predict(np.stack(images))
    assert np.unique(probabilities.round(5)).size == len(hu)  # so that no two can be taken for each other
    return probabilities


def volume_of(stack, side=-1):
    """side: -1 where columns lead to the patient's left, 1 to the right."""
    return nibabel.Nifti1Image(stack.transpose(2, 1, 0).astype(np.int16), np.diag([side / 2, -0.5, 5, 1])).to_bytes()


@pytest.fixture
def ward(tmp_path, dicom, stack):
    """A folder as a disc from a clinic: two series whose names, numbers and order of files say nothing, and more."""
    folder = tmp_path / 'disc'
    folder.mkdir()
    for series, (uid, number) in enumerate((('1.2.3', 4), ('1.2.9', 4))):
        for place, name in enumerate('fbeadc'):
            data = dicom(
                stack[place] + series, InstanceNumber=60 - place, SeriesInstanceUID=uid, SeriesNumber=number,
                ImagePositionPatient=[0, 0, 5 * place],
            )  # fmt: skip
            (folder / f'IM{name}{series}').write_bytes(data)
    (folder / 'notes.txt').write_text('no image')
    return folder


def test_a_folder_of_dicom_files_is_told_by_content_and_ordered_by_position(ward, crossed, stack, tmp_path, capsys):
    assert run(crossed, ward, '--out', tmp_path / 'out') == 0
    assert not capsys.readouterr().err
    found = table(tmp_path / 'out')
    assert found.series.tolist() == [1] * 6 + [2] * 6 and found.slice.tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert found.instance_number.tolist() == [60, 59, 58, 57, 56, 55] * 2 and set(found.series_number) == {4}
    assert [name[-2:] for name in found.file[:6]] == ['f0', 'b0', 'e0', 'a0', 'd0', 'c0']
    np.testing.assert_allclose(found.probability[:6], predicted(crossed, stack), atol=1e-6)
    np.testing.assert_allclose(found.probability[6:], predicted(crossed, stack + 1), atol=1e-6)


def test_each_series_has_its_largest_and_the_mean_of_its_three_largest(ward, crossed, tmp_path):
    assert run(crossed, ward, '--out', tmp_path / 'out') == 0
    found, series = table(tmp_path / 'out'), table(tmp_path / 'out', 'series')
    assert series.series.tolist() == [1, 2] and series.slices.tolist() == [6, 6]
    assert series.first_file.tolist() == [f'{ward}/IMf0', f'{ward}/IMf1'] and series.series_number.tolist() == [4, 4]
    for each in series.itertuples():
        probabilities = sorted(found.probability[found.series == each.series])
        assert each.largest == probabilities[-1]
        assert each.mean_of_three_largest == pytest.approx(np.mean(probabilities[-3:]))
    told = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [each['largest'] for each in told['series']] == series.largest.tolist()
    assert [each['slice'] for each in told['predictions']] == found.slice.tolist()


def test_without_positions_the_instance_number_orders(crossed, dicom, stack, tmp_path):
    (tmp_path / 'in').mkdir()
    for place, name in enumerate('cab'):
        data = dicom(stack[place], InstanceNumber=place, ImagePositionPatient=None)
        (tmp_path / 'in' / name).write_bytes(data)
    assert run(crossed, tmp_path / 'in', '--out', tmp_path / 'out') == 0
    assert [name[-1] for name in table(tmp_path / 'out').file] == ['c', 'a', 'b']


def test_dicom_nifti_and_a_multi_frame_file_give_the_same_probabilities(crossed, dicom, stack, tmp_path):
    single = [tmp_path / f'{place}.dcm' for place in range(6)]
    for place, path in enumerate(single):
        path.write_bytes(dicom(stack[place], ImagePositionPatient=[0, 0, place]))
    (tmp_path / 'frames.dcm').write_bytes(dicom(stack, SeriesInstanceUID='1.5'))
    (tmp_path / 'volume.nii').write_bytes(volume_of(stack))
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/volume.nii', volume_of(stack[:, :, ::-1], side=1))
        archive.writestr('b/frames', dicom(stack, SeriesInstanceUID='1.6'))
    paths = [*single, *(tmp_path / name for name in ('frames.dcm', 'volume.nii', 'all.zip'))]
    assert run(crossed, *paths, '--out', tmp_path / 'out') == 0
    found = table(tmp_path / 'out')
    assert found.groupby('series').size().tolist() == [6] * 5
    expected = predicted(crossed, stack)
    for _, rows in found.groupby('series'):
        assert rows.slice.tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(rows.probability, expected, atol=1e-6)
    assert found.file.iloc[-1] == f'{tmp_path}/all.zip/b/frames'


def test_pixels_of_one_batch_or_one_file_are_in_memory(crossed, dicom, stack, tmp_path, monkeypatch):
    small = stack[0, :20, :20]
    for number in range(70):
        (tmp_path / f'{number:02}.dcm').write_bytes(dicom(small, ImagePositionPatient=[0, 0, number]))
    frames = np.stack([small + number for number in range(100)])
    for name, part, position in (('above.dcm', frames[97:], 500), ('below.dcm', frames[:97], 0)):
        data = dicom(part, SeriesInstanceUID='1.5', ImagePositionPatient=[0, 0, position])
        (tmp_path / name).write_bytes(data)
    sizes, computed = [], Model.member_logits
    monkeypatch.setattr(
        Model, 'member_logits', lambda self, images: sizes.append(len(images)) or computed(self, images)
    )
    assert run(crossed, tmp_path, '--out', tmp_path / 'out') == 0
    assert sizes == [64, 6, 97, 3]
    assert table(tmp_path / 'out').slice.tolist() == [*range(1, 71), *range(1, 101)]


def test_images_beside_series_belong_to_none(ward, crossed, heads, tmp_path):
    assert run(crossed, heads / '00.png', ward, heads / '01.png', '--out', tmp_path / 'out') == 0
    found = table(tmp_path / 'out')
    assert found.series.isna().tolist() == [True] + [False] * 12 + [True]
    assert found.slice.isna().sum() == found.series_number.isna().sum() == 2


def test_the_window_can_be_chosen(crossed, dicom, stack, tmp_path):
    (tmp_path / 'a.dcm').write_bytes(dicom(stack[0], WindowCenter=[300], WindowWidth=[1500]))
    for window in ((40, 80), (75, 215.5), (-20, 1)):
        text = f'{window[0]}/{window[1]}'
        assert run(crossed, tmp_path / 'a.dcm', f'--window={text}', '--out', tmp_path / 'out') == 0
        np.testing.assert_allclose(
            table(tmp_path / 'out').probability, predicted(crossed, stack[:1], Window(*window)), atol=1e-6
        )


@pytest.mark.parametrize('window', ['', '40', '40/0.5', '40/80/3', 'a/b', '40/nan', 'inf/80', '40/inf'])
def test_a_window_that_is_none_is_one_line(window, crossed, heads, tmp_path, refusal):
    said = refusal(predict.main, [str(crossed), str(heads), f'--window={window}', f'--out={tmp_path}/out'])
    assert 'expected LEVEL/WIDTH in HU, as in 40/80' in said


def test_what_is_no_ct_slice_is_skipped_and_the_exit_status_stays_0(ward, crossed, dicom, stack, tmp_path, capsys):
    scout = dicom(stack[0], ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
    (ward / 'scout').write_bytes(scout)
    (ward / 'zz.nii').write_bytes(volume_of(np.abs(stack)))
    assert run(crossed, ward, '--out', tmp_path / 'out') == 0
    said = capsys.readouterr()
    assert '12 images by' in said.out and '; 2 skipped' in said.out
    lines = said.err.splitlines()
    assert len(lines) == 2 and f'{ward}/scout: skipped, a localizer' in lines[0] and 'zz.nii: skipped' in lines[1]
    assert run(crossed, ward / 'scout', '--out', tmp_path / 'alone') == 1  # nothing was predicted
    assert len(table(tmp_path / 'alone')) == 0


def test_a_ct_slice_that_cannot_be_read_is_one_line_and_the_others_go_on(ward, crossed, dicom, tmp_path, capsys):
    (ward / 'IMe0').write_bytes((ward / 'IMe0').read_bytes()[:-50])  # in the middle of the series
    (ward / 'four.nii').write_bytes(volume_of(np.zeros((2, 9, 9)))[:-3])
    assert run(crossed, ward, '--out', tmp_path / 'out') == 1
    said = capsys.readouterr()
    assert '2 could not be read' in said.out
    assert sorted(line.partition(': ')[0][-5:] for line in said.err.splitlines()) == ['/IMe0', 'r.nii']
    found = table(tmp_path / 'out')
    assert len(found) == 11 and found.slice.tolist() == [1, 2, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert table(tmp_path / 'out', 'series').slices.tolist() == [5, 6]


def test_bad_input_is_one_line_each(crossed, dicom, stack, tmp_path, capsys, refusal):
    (tmp_path / 'empty').mkdir()
    assert 'no images in' in refusal(predict.main, [str(crossed), str(tmp_path / 'empty'), f'--out={tmp_path}/out'])
    files = {
        'no pixels.dcm': (dicom(stack[0], PixelData=None), 'without pixels'),
        'time.nii': (nibabel.Nifti1Image(np.zeros((9, 9, 9, 2), np.int16), np.eye(4)).to_bytes(), '4-D of 9 x 9'),
        'one.dcm': (dicom(stack[0][:1, :1]), '1 x 1 pixels, expected at least 16'),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    Image.new('L', (1, 1)).save(tmp_path / 'one.png')
    for name, message in (*((name, message) for name, (_, message) in files.items()), ('one.png', '1 x 1 pixels')):
        capsys.readouterr()
        assert run(crossed, tmp_path / name, '--out', tmp_path / 'out') == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and name in line


def test_slices_with_the_pixels_of_a_training_image_are_marked(crossed, dicom, heads, tmp_path):
    """HU that the window shows as the greys of a training image, in DICOM and in NIfTI."""
    with Image.open(heads / '05.png') as image:
        greys = np.asarray(image).astype(np.int32)
    window = '--window=128/256'  # a HU is a grey
    hu = np.stack([greys, np.where(np.arange(greys.size).reshape(greys.shape), greys, greys ^ 1)])
    hu[1, 0, 0] = 255 - greys[0, 0]
    (tmp_path / 'a.dcm').write_bytes(dicom(hu))
    padded = np.where(hu == 0, -1000, hu)
    (tmp_path / 'a.nii').write_bytes(volume_of(padded))
    assert (padded == -1000).any()
    assert run(crossed, tmp_path / 'a.dcm', tmp_path / 'a.nii', window, '--out', tmp_path / 'out') == 0
    assert table(tmp_path / 'out').in_training_set.tolist() == [True, False] * 2


def test_preprocess_takes_a_file_with_one_slice_and_refuses_several(crossed, dicom, stack, tmp_path):
    model = bhcnet_jax.load(crossed)
    expected = model.preprocess(grey_levels(stack[0].astype(np.float32), BRAIN))
    for name, data in (('a.dcm', dicom(stack[0])), ('a', dicom(stack[0])), ('a.nii', volume_of(stack[:1]))):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(model.preprocess(tmp_path / name), expected)
    (tmp_path / 'b.nii').write_bytes(volume_of(stack))
    with pytest.raises(UserError, match='several slices, expected one'):
        model.preprocess(tmp_path / 'b.nii')
    with pytest.raises(UserError, match='1 x 1 pixels, expected at least 16'):
        model.preprocess(np.zeros((1, 1), np.uint8))


def test_without_the_libraries_one_line_says_what_to_install(
    ward, crossed, heads, stack, tmp_path, capsys, monkeypatch
):
    (ward / 'a.nii').write_bytes(volume_of(stack))
    for name in [name for name in sys.modules if name.partition('.')[0] in ('pydicom', 'nibabel')]:
        monkeypatch.delitem(sys.modules, name)
    for name in ('dicom', 'nifti'):
        monkeypatch.delitem(sys.modules, f'bhcnet_jax.datasets.ct.{name}', raising=False)
        monkeypatch.delattr(reader.__package__ + f'.{name}', raising=False)
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    monkeypatch.setitem(sys.modules, 'nibabel', None)
    assert run(crossed, ward, heads / '00.png', '--out', tmp_path / 'out') == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{kind} files need {library}, which is not installed: pip install 'bhcnet_jax[dicom]'"
        for kind, library in (('DICOM', 'pydicom'), ('NIfTI', 'nibabel'))
    ]
    assert len(table(tmp_path / 'out')) == 1


def test_images_alone_import_no_library_for_ct(crossed, heads, tmp_path):
    said = (
        'import sys; from bhcnet_jax import predict\n'
        f'try: predict.main([{str(crossed)!r}, {str(heads)!r}, "--out", {str(tmp_path)!r}])\n'
        'except SystemExit as ended: print(ended.code, {"pydicom", "nibabel"} & set(sys.modules))'
    )
    ended = subprocess.run([sys.executable, '-c', said], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith('0 set()\n')


SECRETS = ('Jane^Planted', 'PLANTED-ID-4711', '19610203', 'Planted Hospital', 'PrivatePlanted', 'CommentPlanted')


def plant(data, **changes):
    """Names and dates in the usual tags, in private ones, in a sequence, the preamble and the file meta information."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = SECRETS[:3]
    dataset.InstitutionName, dataset.ImageComments = SECRETS[3], SECRETS[5]
    dataset.StudyDate, dataset.AccessionNumber, dataset.StudyID = SECRETS[2], SECRETS[1], SECRETS[1]
    dataset.SeriesDescription = dataset.ProtocolName = SECRETS[0]
    inner = pydicom.Dataset()
    inner.PatientName = SECRETS[0]
    dataset.OtherPatientIDsSequence = [inner]
    dataset.private_block(0x29, SECRETS[4], create=True).add_new(1, 'LO', SECRETS[4])
    dataset.file_meta.SourceApplicationEntityTitle = SECRETS[4]
    dataset.file_meta.PrivateInformationCreatorUID, dataset.file_meta.PrivateInformation = '1.2', SECRETS[1].encode()
    for key, value in changes.items():
        setattr(dataset, key, value)
    dataset.preamble = SECRETS[0].encode().ljust(128, b'\0')
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.slow
def test_nothing_of_a_patient_reaches_an_output(crossed, dicom, stack, tmp_path):
    """Intact, skipped and damaged files of every kind, run as a process: every byte that it writes or says."""
    folder = tmp_path / 'in'
    folder.mkdir()
    with pydicom.config.disable_value_validation():
        files = {
            'slice': plant(dicom(stack[0])),
            'scout': plant(dicom(stack[0], ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])),
            'other': plant(dicom(stack[0]), Modality=SECRETS[0], ImageType=[SECRETS[4], SECRETS[5]]),
            'numbers': plant(
                dicom(stack[0], SeriesNumber=None, InstanceNumber=None, RescaleSlope=None), SeriesInstanceUID=SECRETS[1]
            ),
            'values': plant(dicom(stack[0]), RescaleType=SECRETS[4]),
            'grey': plant(dicom(stack[0]), PhotometricInterpretation=SECRETS[4]),
            'class': plant(dicom(stack[0]), SOPClassUID=SECRETS[1]),
            'cut': plant(dicom(stack[0]))[:-99],
        }
        for keyword in ('RescaleSlope', 'PixelSpacing', 'SeriesNumber', 'NumberOfFrames', 'ImageOrientationPatient'):
            planted = plant(dicom(stack[0], **{keyword: None}))
            dataset = pydicom.dcmread(io.BytesIO(planted))
            dataset.add_new(keyword, 'LO', SECRETS[0])
            dataset.save_as(folder / f'text in {keyword}')
    for name, data in files.items():
        (folder / name).write_bytes(data)
    image = nibabel.Nifti1Image(stack.transpose(2, 1, 0).astype(np.int16), np.diag([-1.0, -1, 5, 1]))
    image.header['descrip'], image.header['intent_name'] = SECRETS[0].encode(), SECRETS[1][:15].encode()
    image.header['aux_file'], image.header['db_name'] = SECRETS[3].encode(), SECRETS[4].encode()
    (folder / 'volume.nii').write_bytes(image.to_bytes())
    (folder / 'cut.nii').write_bytes(image.to_bytes()[:-99])
    (folder / 'bad.nii').write_bytes(image.to_bytes().replace(b'n+1\0', b'Jane'))
    text = PngImagePlugin.PngInfo()
    text.add_text('Patient', SECRETS[0])
    text.add_text('Comment', SECRETS[1], zip=True)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = SECRETS[0], SECRETS[3]
    grey = Image.fromarray(grey_levels(stack[0].astype(np.float32), BRAIN))
    grey.save(folder / 'a.png', pnginfo=text, exif=exif)
    grey.save(folder / 'a.jpg', exif=exif, comment=SECRETS[5].encode())
    grey.save(folder / 'a.tif', tiffinfo={270: SECRETS[0], 315: SECRETS[3]})
    (folder / 'cut.png').write_bytes((folder / 'a.png').read_bytes()[:-300])

    command = [sys.executable, '-m', 'bhcnet_jax.predict', crossed, folder, '--out', tmp_path / 'out']
    ended = subprocess.run(command, capture_output=True, cwd=tmp_path)
    written = b''.join(path.read_bytes() for path in sorted((tmp_path / 'out').rglob('*')) if path.is_file())
    everything = ended.stdout + ended.stderr + written
    lines = ended.stderr.decode().splitlines()
    assert all(line.startswith(str(folder)) for line in lines) and len(lines) >= 9
    assert len(table(tmp_path / 'out')) >= 11
    for secret in (*SECRETS, 'Planted', 'Jane', '4711'):
        for form in (secret.encode(), secret.encode('utf-16-le'), secret.lower().encode()):
            assert form not in everything
