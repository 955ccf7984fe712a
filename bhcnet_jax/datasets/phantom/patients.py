"""Writes drawn patients as a folder of slices that `--config.dataset.name=folder` reads, and as volumes.

    python -m bhcnet_jax.datasets.phantom.patients FOLDER --patients=20

FOLDER/images/003_17.png is slice 17 of patient 3, counted from the neck; masks/ has its mask (255 = blood), labels.csv
its label, its patient as `group`, and what is known of its bleeding. volumes/003.npz has the patient as hu, int16
[Z, S, S] in Hounsfield units, mask, bool [Z, S, S], and spacing, float32 [3], in mm (slices, rows, columns).
"""

import csv
import io
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from bhcnet_jax import files
from bhcnet_jax.datasets.phantom import bleedings, heads
from bhcnet_jax.errors import Parser, UserError, fail

COLUMNS = ('file', 'label', 'group', 'kind', 'contrast', 'volume_ml', 'height_mm')


def write(folder: pathlib.Path, patients: int, size: int, slices: int, seed: int) -> None:
    """Writes the folder. UserError: it is there and not empty, or one slice is no patient."""
    if patients < 1 or size < 16 or slices < 2:
        raise UserError(
            f'--patients={patients} --size={size} --slices={slices}: expected at least 1, 16 and 2. Give others.'
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f'{folder} is not empty; expected a new folder. Give another one.')
    for part in ('images', 'masks', 'volumes'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    draw = jax.jit(lambda key: heads.draw_volume(key, size, slices))
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    for patient in range(patients):
        volume = jax.tree.map(np.asarray, draw(jax.random.fold_in(jax.random.key(seed), patient)))
        hu = np.clip(np.round(volume.hu), -1024, 3071).astype(np.int16)
        np.savez_compressed(
            folder / 'volumes' / f'{patient:03d}.npz', hu=hu, mask=volume.mask, spacing=volume.spacing
        )
        for place in range(slices):
            rows.writerow(_write_slice(folder, patient, place, volume))
    files.write_text(folder / 'labels.csv', table.getvalue())


def _write_slice(folder: pathlib.Path, patient: int, place: int, volume: heads.Volume) -> tuple[object, ...]:
    """-> its row of labels.csv."""
    name = f'{patient:03d}_{place:02d}.png'
    Image.fromarray(volume.image[place]).save(folder / 'images' / name)
    Image.fromarray(volume.mask[place].astype(np.uint8) * 255).save(folder / 'masks' / name)
    numbers = (f'{each[place]:.3f}' for each in (volume.contrast, volume.volume, volume.height))
    kind = bleedings.KINDS[volume.kind[place]]
    return f'images/{name}', int(volume.label[place]), f'{patient:03d}', kind, *numbers


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
    flags = parser.parse_args(arguments)
    try:
        write(flags.folder, flags.patients, flags.size, flags.slices, flags.seed)
    except UserError as error:
        fail(error)
    print(f'{flags.patients} PHANTOM patients of {flags.slices} slices in {flags.folder}')


if __name__ == '__main__':
    main()
