"""The images that the best network misreads, if the images are at hand."""

import base64
import io

import numpy as np
from PIL import Image

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.report.evidence import PAPERS_DATA, Evidence, Recipe
from bhcnet_jax.report.page import Block, Gallery, Section

MOST = 12  # images per gallery
COMMAND = 'python -m bhcnet_jax.report WORKDIR...'


def misread(evidence: Evidence, images: ImageSet | str) -> Section:
    """Shows missed positives and false alarms of the best network, the most certain first.

    images: or why there are none.
    """
    title, best = 'Misread images', evidence.best('network') or evidence.recipes[0]
    lists = _wrong(best, evidence.classes)
    told = [f'{name} by {best.label}, {_listed(best, places)}' for name, places in lists.items()]
    if isinstance(images, str):
        command = f'HEAD_CT_DIR=... {COMMAND}' if evidence.dataset == PAPERS_DATA else COMMAND
        return Section(title, [f'Images are left out: {images} To have them: `{command}`', *told])
    blocks: list[Block] = []
    for (name, places), line in zip(lists.items(), told, strict=True):
        shown = places[:MOST]
        blocks.append(line)
        if len(shown):
            of = f'{name}, {len(shown)} of {len(places)}; probability of {evidence.classes[1]}, mean over seeds'
            blocks.append(Gallery(of, [_picture(best, place, images) for place in shown]))
    return Section(title, blocks)


def _wrong(recipe: Recipe, classes: tuple[str, str]) -> dict[str, np.ndarray]:
    """Places in the pooled images by the probability averaged over seeds, the most certain mistakes first."""
    labels, probability = recipe.pooled.labels, recipe.mean_probability
    order = np.argsort(probability, kind='stable')
    negative, positive = classes
    return {
        f'{positive.capitalize()} called {negative}': order[labels[order] & (probability[order] < 0.5)],
        f'{negative.capitalize()} called {positive}': order[~labels[order] & (probability[order] >= 0.5)][::-1],
    }


def _listed(recipe: Recipe, places: np.ndarray) -> str:
    of = np.sum(recipe.pooled.labels == recipe.pooled.labels[places[0]]) if len(places) else 0
    names = ', '.join(map(str, recipe.pooled.image_ids[places]))
    return f'{len(places)} of {of}: {names}.' if len(places) else 'none.'


def _picture(recipe: Recipe, place: int, images: ImageSet) -> tuple[str, str]:
    image_id = str(recipe.pooled.image_ids[place])
    written = io.BytesIO()
    Image.fromarray(images.images[images.ids.index(image_id)]).save(written, 'PNG', optimize=True)
    mark = 'PHANTOM ' if images.synthetic else ''
    address = f'data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}'
    return address, f'{mark}{image_id}, P = {recipe.mean_probability[place]:.2f}'
