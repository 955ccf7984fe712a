"""Two CPU devices, strict dtype promotion, absl flags parsed: what every test here relies on."""

import atexit
import io
import os
import shutil
import tempfile

import runs

if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {runs.xla_flags(devices=2)}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import pytest
from absl import flags

from bhcnet_jax.datasets.phantom import drawing

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
if 'PYTEST_XDIST_WORKER' not in os.environ:
    # Processes that the tests start share a folder of this run alone: they are killed while they write to it.
    of_children = tempfile.mkdtemp(prefix='compiled')
    atexit.register(shutil.rmtree, of_children, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = of_children  # workers inherit it
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
flags.FLAGS.mark_as_parsed()  # grain reads absl flags; under pytest nobody else parses them

# A worker takes the files in this order, so that none begins a long one when the others are done.
LONGEST_FIRST = ('launch', 'durability', 'engine', 'models', 'steps', 'train', 'report', 'distributed', 'pruning')


def pytest_configure(config):
    """Keeps what the tests compile for their next run; --cache-clear drops it."""
    jax.config.update('jax_compilation_cache_dir', str(config.cache.mkdir('compiled')))


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem.removeprefix('test_')
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == 'not slow':
        everything = "python -m pytest -m 'slow or not slow'"
        terminalreporter.write_line(f'Tests marked slow were left out. All, as in CI: {everything}', yellow=True)


@pytest.fixture(scope='module', autouse=True)
def _drop_programs():
    """A compiled program holds memory maps, and Linux gives a process 65 530: without this a worker crashes at last."""
    yield
    jax.clear_caches()


@pytest.fixture(scope='session')
def labelled_folder(tmp_path_factory):
    """A folder with labels.csv and 40 images of noise, with a bright square on those labelled 1."""
    return runs.draw_folder(tmp_path_factory.mktemp('images') / 'labelled_folder')


@pytest.fixture
def refusal(capsys):
    """A function that has a command refuse its arguments, and returns the line in which it does."""

    def refused(command, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command(*arguments)
        line = capsys.readouterr().err
        assert ended.value.code == 2
        assert line.startswith('error: ') and line.count('\n') == 1
        return line

    return refused


@pytest.fixture(scope='session')
def head_hu():
    """A drawn head in whole HU, int32 [H, W], from air to bone."""
    streams = [np.random.default_rng((1, 0, stream)) for stream in range(2)]
    head, hu = drawing._draw_brain(streams[0], 'subdural')
    hu, _ = drawing._add_skull(streams[1], head, hu)
    return np.rint(hu).astype(np.int32)


@pytest.fixture(scope='session')
def dicom():
    """A function from HU and tags to the bytes of a CT slice.

    hu: int32 [H, W], or [N, H, W] of frames. syntax: it is written in. changes: tags by keyword, None to leave one out.
    """
    pydicom = pytest.importorskip('pydicom')

    def written(hu, syntax=pydicom.uid.ExplicitVRLittleEndian, slope=1, intercept=-1024, **changes):
        tags = {
            'SOPClassUID': pydicom.uid.CTImageStorage, 'SOPInstanceUID': pydicom.uid.generate_uid(), 'Modality': 'CT',
            'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL'], 'SeriesInstanceUID': '1.2.3', 'SeriesNumber': 5,
            'InstanceNumber': 7, 'ImagePositionPatient': [0, 0, 0], 'ImageOrientationPatient': [1, 0, 0, 0, 1, 0],
            'PixelSpacing': [0.5, 0.5], 'SamplesPerPixel': 1, 'PhotometricInterpretation': 'MONOCHROME2',
            'BitsAllocated': 16, 'BitsStored': 16, 'PixelRepresentation': 0, 'Rows': hu.shape[-2],
            'Columns': hu.shape[-1], 'RescaleSlope': slope, 'RescaleIntercept': intercept,
        } | changes  # fmt: skip
        tags.setdefault('HighBit', tags['BitsStored'] - 1)
        if hu.ndim == 3:
            tags.setdefault('NumberOfFrames', len(hu))
        order = '>' if syntax == pydicom.uid.ExplicitVRBigEndian else '<'
        kind = f'{order}{"iu"[1 - tags["PixelRepresentation"]]}{tags["BitsAllocated"] // 8}'
        stored = ((hu - intercept) / slope).astype(np.int64).astype(kind)
        tags.setdefault('PixelData', stored.tobytes())
        dataset = pydicom.Dataset()
        for key, value in tags.items():
            if value is not None:
                setattr(dataset, key, value)
        if 'PixelData' in dataset:
            dataset['PixelData'].VR = 'OW' if tags['BitsAllocated'] > 8 else 'OB'
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = tags['SOPClassUID']
        dataset.file_meta.MediaStorageSOPInstanceUID = tags['SOPInstanceUID']
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.is_encapsulated and not isinstance(changes.get('PixelData'), bytes):
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            dataset.compress(syntax, generate_instance_uid=False)
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()

    return written
