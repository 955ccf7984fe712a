"""A model in one file: a zip that needs no run directory and holds no code.

    manifest.json          FORMAT, VERSION, the SHA-256 of every other file, and one over all of that
    model.json             recipe, preprocessing, members, training set, metrics with intervals, calibration, versions
    weights.safetensors    each array with a leading axis [members]; its name is its path, as in params/head/logit/bias
    training_images.json   `pixel_sha256` of the training set's images, sorted, without names
    outliers.safetensors   what images unlike those of the training set are told by, if that was fitted
    MODEL_CARD.md          the same in words

One bundle comes with the package, SHIPPED: networks that have seen drawn heads alone, for use before any training.

Files are stored, not compressed, and have no dates: the same model gives the same bytes. The digest finds damage; it is
no signature.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import zipfile
from collections.abc import Mapping
from typing import Any

import safetensors.numpy
from flax import traverse_util

from bhcnet_jax import files
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference import calibration, card
from bhcnet_jax.inference.calibration import Calibration
from bhcnet_jax.inference.model import Measured, Member, Model
from bhcnet_jax.inference.outliers import Outliers
from bhcnet_jax.plan import trial, written
from bhcnet_jax.records import recipes
from bhcnet_jax.records.merge import Merged
from bhcnet_jax.run.run_dir import PACKAGES
from bhcnet_jax.version import __version__

FORMAT, VERSION, SUFFIX = 'bhcnet_jax model', 2, '.bhc'
MANIFEST, MODEL, WEIGHTS, IMAGES, OUTLIERS, CARD = (
    'manifest.json', 'model.json', 'weights.safetensors', 'training_images.json', 'outliers.safetensors',
    'MODEL_CARD.md',
)  # fmt: skip
SHIPPED = pathlib.Path(__file__).parent / 'phantom.bhc'


def write(model: Model, chosen: Merged | None, path: pathlib.Path, outliers: Mapping[str, Any] | None = None) -> None:
    """Writes the bundle of a model. UserError: it cannot be written.

    chosen: the trials that it is made from; None for networks that have seen drawn heads alone. outliers: how those of
    the model do on images held out, or why it has none ('missing'), for model.json.
    """
    described = _describe(model, chosen, outliers or {'missing': 'they were not fitted'})
    hashes = None if model.training_images is None else sorted(model.training_images)
    contents = {
        MODEL: _json(described),
        WEIGHTS: safetensors.numpy.save(traverse_util.flatten_dict(model.variables, sep='/')),
        IMAGES: _json({'pixel_sha256': hashes}),
        CARD: card.text(described).encode(),
    }
    if model.outliers is not None:
        arrays = {name: getattr(model.outliers, name) for name in ('mean', 'precision', 'normal')}
        contents[OUTLIERS] = safetensors.numpy.save(arrays)
    contents[MANIFEST] = _json(_manifest(contents))
    with files.output(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=2, allow_nan=False) + '\n').encode()


def _manifest(contents: Mapping[str, bytes], version: int = VERSION) -> dict[str, Any]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = {'format': FORMAT, 'version': version, 'files': digests}
    return {**manifest, 'sha256': hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}


def _describe(model: Model, chosen: Merged | None, outliers: Mapping[str, Any]) -> dict[str, Any]:
    """What model.json says."""
    none = {'missing': 'no real image was used'}
    return {
        'name': model.name,
        'recipe': model.recipe,
        'preprocessing': {'image_size': model.image_size, 'resolution': model.resolution},
        'members': [each._asdict() for each in model.members],
        'dataset': model.dataset,
        'class_names': model.class_names,
        'fingerprint': model.fingerprint,
        'test': none if chosen is None else _test(chosen),
        'calibration': none if chosen is None else _calibration(model, chosen),
        'outliers': {**_limits(model.outliers), **outliers},
        'measured': [each._asdict() for each in model.measured],
        'trained_by': [] if chosen is None else sorted(chosen.trials.code.dropna().unique()),
        'versions': {
            'bhcnet_jax': __version__,
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _test(chosen: Merged) -> dict[str, Any]:
    """The out-of-fold scores of the single networks."""
    row = recipes.make(chosen).iloc[0]
    images = chosen.predictions.drop_duplicates('image_id')
    return {
        **{name: int(row[name]) for name in ('images', 'seeds', 'trials')},
        'positives': int(images.label.sum()),
        'folds': row.folds,
        'metrics': {name: _metric(row, name) for name in recipes.METRICS},
    }


def _calibration(model: Model, chosen: Merged) -> dict[str, Any]:
    """A calibration with its evidence, or why there is none."""
    data, made = calibration.out_of_fold(chosen), model.calibration
    if made is None:
        return {'missing': calibration.lacking(data)}
    shown = calibration.evidence(data, made.operating_point, made.error_level)
    return {**dataclasses.asdict(made), 'evidence': shown}


def _limits(outliers: Outliers | None) -> dict[str, float]:
    return {} if outliers is None else {name: getattr(outliers, name) for name in ('offset', 'distance', 'side')}


def _metric(row: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """A metric, its 95 % interval over images, and its standard deviation over seeds; None: undefined."""
    found = {'value': row[name], **{end: row[f'{name}_{end}'] for end in ('low', 'high', 'spread')}}
    return {end: None if math.isnan(value) else float(value) for end, value in found.items()}


def read(path: pathlib.Path) -> Model:
    """The model of a bundle. UserError: no bundle, a damaged one, or one of a newer version."""
    contents = _contents(path)
    described = json.loads(contents[MODEL])
    recipe = written.tuples(described['recipe'])
    try:
        trial.check(written.complete(recipe))
    except UserError as error:
        raise UserError(f'{path}: bhcnet_jax {__version__} does not know its recipe ({error})') from error
    hashes = json.loads(contents[IMAGES])['pixel_sha256']
    return Model(
        name=described['name'],
        recipe=recipe,
        members=tuple(Member(**each) for each in described['members']),
        variables=traverse_util.unflatten_dict(safetensors.numpy.load(contents[WEIGHTS]), sep='/'),
        dataset=described['dataset'],
        class_names=tuple(described['class_names']),
        fingerprint=described['fingerprint'],
        resolution=described['preprocessing']['resolution'],
        training_images=None if hashes is None else frozenset(hashes),
        calibration=_read_calibration(described),
        outliers=_read_outliers(described, contents),
        measured=tuple(Measured(**each) for each in described.get('measured', ())),
    )


def read_shipped() -> Model:
    """The model that comes with the package. UserError: this copy of the package has none."""
    if not SHIPPED.exists():
        raise UserError(
            'this copy of bhcnet_jax comes without the model phantom. Make one: python -m bhcnet_jax.bundle RUN_DIR '
            '--phase=phantom --out=phantom.bhc, see docs/use.md.'
        )
    return read(SHIPPED)


def is_bundle(path: pathlib.Path) -> bool:
    """Whether a file is meant as a bundle: by its name, or since it is a zip with a manifest."""
    if path.suffix == SUFFIX:
        return path.is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist() and MODEL in archive.namelist()
    except Exception:  # no zip, or zipfile stumbles over damage in one
        return False


def _read_calibration(described: Mapping[str, Any]) -> Calibration | None:
    """None: there is none, as in version 1."""
    told = described.get('calibration', {'missing': ''})
    fields = [field.name for field in dataclasses.fields(Calibration)]
    return None if 'missing' in told else Calibration(**{name: told[name] for name in fields})


def _read_outliers(described: Mapping[str, Any], contents: Mapping[str, bytes]) -> Outliers | None:
    if OUTLIERS not in contents:
        return None
    told = described['outliers']
    arrays = safetensors.numpy.load(contents[OUTLIERS])
    return Outliers(**arrays, **{name: told[name] for name in ('offset', 'distance', 'side')})


def _contents(path: pathlib.Path) -> dict[str, bytes]:
    """The files of a bundle by name, as their digests say."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Stored files cannot be larger than the bundle is.
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            contents = {entry.filename: archive.read(entry) for entry in entries} if plain else {}
        manifest = json.loads(contents.pop(MANIFEST))
        form, version = manifest['format'], manifest['version']
    except Exception as error:  # zipfile raises nearly anything on damaged input
        raise UserError(
            f'{path}: not a bundle of python -m bhcnet_jax.bundle, or cut short ({type(error).__name__}: {error}). '
            'Copy it again.'
        ) from error
    if form != FORMAT or not isinstance(version, int):
        raise UserError(f'{path}: its format is {form!r} {version!r}, expected {FORMAT!r} 1 to {VERSION}.')
    if version > VERSION:
        raise UserError(f'{path}: version {version}, newer than the {VERSION} that is read here. Update bhcnet_jax.')
    if manifest != _manifest(contents, version):
        raise UserError(f'{path}: its digest is not that of its content; it was damaged or changed. Copy it again.')
    return contents
