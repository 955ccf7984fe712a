"""The images that the trials are of, if they are at hand."""

from ml_collections import ConfigDict

from bhcnet_jax.configs import base
from bhcnet_jax.datasets import input_pipeline
from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.errors import UserError
from bhcnet_jax.report.evidence import Evidence

SIDE = 128  # pixels


def load(evidence: Evidence) -> ImageSet | str:
    """The images, or why they are not there."""
    dataset = next((each.config['config'].get('dataset', {}) for each in evidence.run_dirs if each.config), {})
    name = {'PHANTOM': 'phantom', 'head_ct': 'head_ct'}.get(evidence.dataset, 'folder')
    try:
        fixed = {'name': name, 'image_size': SIDE, 'equalise': False}
        found = input_pipeline.load(ConfigDict({**base.get_config().dataset.to_dict(), **dataset, **fixed}))
    except (UserError, OSError) as error:
        return f'The images are not at hand: {" ".join(str(error).split())}'
    if found.fingerprint != evidence.fingerprint:
        return (
            f'The images at hand have the fingerprint {found.fingerprint[:12]}, the trials are of '
            f'{evidence.fingerprint[:12]}.'
        )
    return found
