"""Writes drawn patients as a folder of slices that `--config.dataset.name=folder` reads, and as volumes.

    python -m bhcnet_jax.datasets.phantom.patients FOLDER --patients=20 [--format=png|dicom|nifti]

FOLDER/images/003_17.png is slice 17 of patient 3, counted from the neck; masks/ has its mask (255 = blood), labels.csv
its label, its patient as `group`, and what is known of its bleeding. volumes/003.npz has the patient as hu, int16
[Z, S, S] in Hounsfield units, mask, bool [Z, S, S], and spacing, float32 [3], in mm (slices, rows, columns).

--format=dicom writes a series of each patient in place of images/ and volumes/: dicom/003/003_17.dcm. --format=nifti
writes nifti/003.nii.gz, and masks/003.nii.gz (1 = blood). labels.csv then has a column `slice`, from 1 at the feet. The
patients' names are PHANTOM. `python -m bhcnet_jax.predict` reads both.
"""

import csv
import io
import pathlib
import types
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from bhcnet_jax import files
from bhcnet_jax.datasets.ct.hounsfield import LIBRARIES
from bhcnet_jax.datasets.phantom import bleedings, heads
from bhcnet_jax.errors import Parser, UserError, fail

COLUMNS = ('file', 'label', 'group', 'kind', 'contrast', 'volume_ml', 'height_mm')
FORMATS = ('png', 'dicom', 'nifti')


def write(folder: pathlib.Path, patients: int, size: int, slices: int, seed: int, form: str = 'png') -> None:
    """Writes the folder. form: of FORMATS.

    UserError: it is there and not empty, one slice is no patient, or a library for the format is missing.
    """
    write_patient = {'png': _write_png, 'dicom': _write_dicom, 'nifti': _write_nifti}[form]
    if form != 'png':
        _series()
    if patients < 1 or size < 16 or slices < 2:
        raise UserError(
            f'--patients={patients} --size={size} --slices={slices}: expected at least 1, 16 and 2. Give others.'
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'{folder} is not empty; expected a new folder. Give another one.')
    for part in {'png': ('images', 'masks', 'volumes')}.get(form, ('masks', form)):
        (folder / part).mkdir(parents=True, exist_ok=True)
    draw = jax.jit(lambda key: heads.draw_volume(key, size, slices))
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(COLUMNS if form == 'png' else (*COLUMNS, 'slice'))
    for patient in range(patients):
        volume = jax.tree.map(np.asarray, draw(jax.random.fold_in(jax.random.key(seed), patient)))
        hu = np.clip(np.round(volume.hu), -1024, 3071).astype(np.int16)
        for place, file in enumerate(write_patient(folder, f'{patient:03d}', f'{seed}-{patient:03d}', volume, hu)):
            known = _row(file, f'{patient:03d}', place, volume)
            rows.writerow(known if form == 'png' else (*known, place + 1))
    files.write_text(folder / 'labels.csv', table.getvalue())


def _row(file: str, group: str, place: int, volume: heads.Volume) -> tuple[object, ...]:
    """A slice's row of labels.csv."""
    numbers = (f'{each[place]:.3f}' for each in (volume.contrast, volume.volume, volume.height))
    return file, int(volume.label[place]), group, bleedings.KINDS[volume.kind[place]], *numbers


def _write_png(folder: pathlib.Path, number: str, _: str, volume: heads.Volume, hu: np.ndarray) -> Iterator[str]:
    """-> the file of each slice; as of the other formats."""
    np.savez_compressed(folder / 'volumes' / f'{number}.npz', hu=hu, mask=volume.mask, spacing=volume.spacing)
    for place, image in enumerate(volume.image):
        name = f'{number}_{place:02d}.png'
        Image.fromarray(image).save(folder / 'images' / name)
        _write_mask(folder / 'masks' / name, volume.mask[place])
        yield f'images/{name}'


def _write_mask(path: pathlib.Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def _write_dicom(folder: pathlib.Path, number: str, name: str, volume: heads.Volume, hu: np.ndarray) -> Iterator[str]:
    series = _series()
    (folder / 'dicom' / number).mkdir()
    patient = series.Patient(name, hu, volume.height, volume.spacing)
    for place, data in enumerate(series.dicom(patient)):
        file = f'dicom/{number}/{number}_{place:02d}.dcm'
        (folder / file).write_bytes(data)
        _write_mask(folder / 'masks' / f'{number}_{place:02d}.png', volume.mask[place])
        yield file


def _write_nifti(folder: pathlib.Path, number: str, name: str, volume: heads.Volume, hu: np.ndarray) -> Iterator[str]:
    series = _series()
    patient = series.Patient(name, hu, volume.height, volume.spacing)
    (folder / 'nifti' / f'{number}.nii.gz').write_bytes(series.nifti(patient, hu))
    (folder / 'masks' / f'{number}.nii.gz').write_bytes(series.nifti(patient, volume.mask.astype(np.uint8)))
    yield from [f'nifti/{number}.nii.gz'] * len(hu)


def _series() -> types.ModuleType:
    """UserError: its libraries are not installed."""
    try:
        from bhcnet_jax.datasets.phantom import series
    except ModuleNotFoundError as error:
        raise UserError(f'--format: DICOM and NIfTI need {error.name}, which is not installed: {LIBRARIES}') from error
    return series


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. arguments: those of the process unless given."""
    parser = Parser(
        prog='python -m bhcnet_jax.datasets.phantom.patients', description='Writes drawn patients as a folder.'
    )
    parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER')
    parser.add_argument('--patients', type=int, default=20, help='how many')
    parser.add_argument('--size', type=int, default=128, help='pixels of a side')
    parser.add_argument('--slices', type=int, default=32, help='of a patient')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--format', default='png', choices=FORMATS, help='of the slices; default: png')
    flags = parser.parse_args(arguments)
    try:
        write(flags.folder, flags.patients, flags.size, flags.slices, flags.seed, flags.format)
    except UserError as error:
        fail(error)
    print(f'{flags.patients} PHANTOM patients of {flags.slices} slices in {flags.folder}')


if __name__ == '__main__':
    main()
