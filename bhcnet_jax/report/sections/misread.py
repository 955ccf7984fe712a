"""The images that the best network misreads, if the images are at hand."""

import base64
import io

import numpy as np
from PIL import Image

from bhcnet_jax.datasets.input_pipeline import ImageSet
from bhcnet_jax.display.progress import counted
from bhcnet_jax.report.evidence import PAPERS_DATA, Evidence, Recipe
from bhcnet_jax.report.page import Block, Gallery, Section

MOST = 12  # images per gallery


def misread(evidence: Evidence, images: ImageSet | str) -> Section:
    """Shows missed positives and false alarms of the best network, the most certain first.

    images: or why there are none.
    """
    title, best = 'Misread images', evidence.best('network') or evidence.recipes[0]
    lists = _wrong(best, evidence.classes)
    told = [
        f'{name} by {_whose(best)}, {_listed(best, places, label, evidence.classes[label])}'
        for (name, places), label in zip(lists.items(), (1, 0), strict=True)
    ]
    if isinstance(images, str):
        command = f'python -m bhcnet_jax.report {evidence.paths}'
        command = f'HEAD_CT_DIR=... {command}' if evidence.dataset == PAPERS_DATA else command
        return Section(title, [f'Images are left out: {images} To have them: `{command}`', *told])
    blocks: list[Block] = []
    for (name, places), line in zip(lists.items(), told, strict=True):
        shown = places[:MOST]
        blocks.append(line)
        if len(shown):
            most = 'the ' if len(shown) == len(places) else f'the {len(shown)} most certain of '
            of = f'{name}, {most}{len(places)} misread; P: probability of {evidence.classes[1]}, mean over seeds'
            blocks.append(Gallery(of, [_picture(best, place, images) for place in shown]))
    return Section(title, blocks)


def _wrong(recipe: Recipe, classes: tuple[str, str]) -> dict[str, np.ndarray]:
    """Places in the pooled images by the probability averaged over seeds, the most certain mistakes first.

    Of positive images, then of negative ones.
    """
    labels, probability = recipe.pooled.labels, recipe.mean_probability
    order = np.argsort(probability, kind='stable')
    negative, positive = classes
    return {
        f'{positive.capitalize()} called {negative}': order[labels[order] & (probability[order] < 0.5)],
        f'{negative.capitalize()} called {positive}': order[~labels[order] & (probability[order] >= 0.5)][::-1],
    }


def _whose(recipe: Recipe) -> str:
    seeds = len(recipe.pooled.seeds)
    return f'the mean of {seeds} seeds of {recipe.label}' if seeds > 1 else recipe.label


def _listed(recipe: Recipe, places: np.ndarray, label: int, name: str) -> str:
    """How many of which images, and which of them. label, name: of their actual class."""
    of = f'{counted(int(np.sum(recipe.pooled.labels == label)), "image")} of class {name}'
    names = ', '.join(map(str, recipe.pooled.image_ids[places]))
    return f'{len(places)} of {of}: {names}.' if len(places) else f'none of {of}.'


def _picture(recipe: Recipe, place: int, images: ImageSet) -> tuple[str, str]:
    image_id = str(recipe.pooled.image_ids[place])
    written = io.BytesIO()
    Image.fromarray(images.pictures[images.ids.index(image_id)]).save(written, 'PNG', optimize=True)
    mark = 'PHANTOM ' if images.synthetic else ''
    address = f'data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}'
    return address, f'{mark}{image_id}, P = {recipe.mean_probability[place]:.2f}'
