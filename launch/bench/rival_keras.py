"""The same training in Keras 3, as a contender (see contender.py); KERAS_BACKEND says on which backend.

B batch, H W pixels.
"""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from contender import Task, serve
from keras import ops


class Affine(keras.layers.Layer):
    """Random flips, shears, zooms, rotations and shifts in training, as `config.augment.affine` says."""

    def __init__(self, strengths: dict[str, float]):
        super().__init__(dtype='float32')
        self._strengths, self._seeds = strengths, keras.random.SeedGenerator(0)

    def call(self, images: Any, training: bool = False) -> Any:
        """float32 [B, H, W, 1] in and out."""
        if not training:
            return images
        matrices = transforms(**self._draw(ops.shape(images)[0]), size=images.shape[1])
        return ops.image.affine_transform(images, matrices, interpolation='bilinear', fill_mode='constant')

    def _draw(self, count: Any) -> dict[str, Any]:
        def uniform(low: float, high: float) -> Any:
            return keras.random.uniform((count,), low, high, seed=self._seeds)

        zoom, rotation, shift = (self._strengths[name] for name in ('zoom', 'rotation', 'shift'))
        return {
            'flip': uniform(0.0, 1.0) < self._strengths['flip'],
            'shear': uniform(0.0, self._strengths['shear']),
            'zoom': uniform(1.0 - zoom, 1.0 + zoom),
            'rotation': uniform(-rotation, rotation),
            'shift': ops.stack([uniform(-shift, shift), uniform(-shift, shift)], axis=-1),
        }

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape


def transforms(flip: Any, shear: Any, zoom: Any, rotation: Any, shift: Any, size: int) -> Any:
    """Maps from output to source, float32 [B, 8] for `affine_transform`; arguments as of `augment.affine`, [B, ...]."""
    radians = math.pi / 180.0
    slope = ops.tan(shear * radians)
    cos, sin = ops.cos(rotation * radians), ops.sin(rotation * radians)
    sign = ops.where(flip, -1.0, 1.0)
    # x to the right, y down, in pixels from the first; the image turns about its middle.
    xx, xy = sign * (cos - slope * sin) / zoom, -sign * (sin + slope * cos) / zoom
    yx, yy = sin / zoom, cos / zoom
    middle = (size - 1) / 2.0
    x, y = middle + shift[:, 1] * size, middle + shift[:, 0] * size  # of the output, what comes from the middle
    zeros = ops.zeros_like(xx)
    return ops.stack(
        [xx, xy, middle - xx * x - xy * y, yx, yy, middle - yx * x - yy * y, zeros, zeros], axis=-1
    )


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over the first `warmup` of the steps, then a cosine to 0."""

    def __init__(self, peak: float, warmup: float, steps: int):
        super().__init__()
        self._peak, self._warm, self._steps = peak, round(warmup * steps), steps

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, 'float32')
        share = (step - self._warm) / (self._steps - self._warm)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(share, 0.0, 1.0)))
        return self._peak * ops.where(step < self._warm, step / max(self._warm, 1), cosine)


def network(config: dict[str, Any], plain: bool) -> keras.Model:
    """The paper's CNN: uint8 [B, H, W, 1] -> logits float32 [B, 1]. plain: no augmentation, no dropout."""
    size, filters = config['dataset']['image_size'], config['model']['filters']
    inputs = keras.Input((size, size, 1), dtype='uint8')
    x = keras.layers.Rescaling(1 / 255, dtype='float32')(inputs)
    x = x if plain else Affine(config['augment']['affine'])(x)
    for number, features in enumerate(filters, 1):
        x = keras.layers.Conv2D(features, 3, padding='same', activation='relu')(x)
        x = keras.layers.MaxPooling2D(2)(x) if number < len(filters) else keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.0 if plain else config['model']['dropout'])(x)
    return keras.Model(inputs, keras.layers.Dense(1, dtype='float32')(x))


def compiled(task: Task, steps: int, plain: bool = False) -> keras.Model:
    """The network, ready for `fit`. variant: dtype and jit_compile (True, False or 'auto')."""
    settings, policy = task.config['optimizer'], task.variant['dtype']
    keras.config.set_dtype_policy('mixed_bfloat16' if policy == 'bfloat16' else policy)
    model = network(task.config, plain)
    rate = Schedule(settings['peak_lr'], settings['warmup'], steps)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=settings['weight_decay'], epsilon=1e-8),
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=task.variant['jit_compile'],
    )
    return model


class Keras:
    """Keras as a contender."""

    def __init__(self, task: Task):
        self._task = task
        self._batch = task.config['batch_size']
        self._data = task.images[task.sources][..., None], task.labels[task.sources].astype(np.float32)[:, None]
        steps = -(-len(task.sources) // self._batch)
        self._model = compiled(task, task.config['balanced']['epochs'] * steps)

    def train(self) -> None:
        self._model.fit(*self._data, batch_size=self._batch, verbose=0)

    def first_losses(self) -> list[float]:
        task, losses = self._task, []
        model = compiled(task, len(task.batches), plain=True)
        convolutions = range(1, len(task.config['model']['filters']) + 1)
        names = [*(f'trunk/conv{number}' for number in convolutions), 'head/logit']
        model.set_weights([task.weights[f'{name}/{part}'] for name in names for part in ('kernel', 'bias')])
        for batch in task.batches:
            labels = task.labels[batch].astype(np.float32)[:, None]
            history = model.fit(task.images[batch][..., None], labels, batch_size=len(batch), verbose=0)
            losses.append(float(history.history['loss'][0]))
        return losses

    def multiply(self) -> Callable[[], Any]:
        raise NotImplementedError  # its backends are asked by themselves


if __name__ == '__main__':
    serve(Keras)
