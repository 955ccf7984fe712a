"""A model as a program for other readers: StableHLO and ONNX.

Either takes uint8 [N, S, S], images as `Model.preprocess` makes them, and gives float32 [N], what `Model.logits` does.
It computes in float32 with plain convolutions, so that it has no operation that suits one kind of processor only.
"""

import functools
import importlib
import json
import logging
import operator
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from ml_collections import FrozenConfigDict
from PIL import Image

from bhcnet_jax import files
from bhcnet_jax.datasets.phantom import drawing
from bhcnet_jax.errors import UserError
from bhcnet_jax.inference.model import Model
from bhcnet_jax.models import layers
from bhcnet_jax.plan import written
from bhcnet_jax.training import steps

TOLERANCE = 1e-4  # the largest difference of a logit that is kept
CHECKED = 64  # images that are compared
SEED = drawing.SEED + 1  # theirs; no training has seen them
PLATFORMS = ('cpu', 'cuda')  # of StableHLO
INPUT, OUTPUT = 'images', 'logits'
OPSET = 21  # of ONNX: version 1.16 and later

Function = Callable[[Any], Any]  # uint8 [N, S, S] -> float32 [N]


def write(model: Model, path: pathlib.Path) -> float:
    """Writes a model as StableHLO or ONNX, by the file's ending. -> the largest difference of a logit that was found.

    The file is kept if its logits are the model's own, computed in float32, within TOLERANCE on CHECKED drawn heads.
    UserError: another ending, a library is missing, the logits differ, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f'--out={path}: its ending is {path.suffix!r}, expected {" or ".join(FORMATS)}.')
    serialize, open_program = FORMATS[path.suffix]
    with files.output(path) as file:
        content = serialize(model, as_function(model))
        difference = largest_difference(model, open_program(content))
        if not difference <= TOLERANCE:
            raise UserError(
                f'{path} was not written: its logits differ by up to {difference:.2g} from those of the model, '
                f'expected at most {TOLERANCE:g}. Export as another format.'
            )
        file.write(content)
    return difference


def as_function(model: Model) -> Function:
    """The mean logit of the members, as one traceable function that holds their weights."""
    config, networks = _in_float32(model), _networks(model)

    def apply(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(_plain_convolution):
            return sum(steps.logits(config, variables, images) for variables in networks) / len(networks)

    return apply


def _networks(model: Model) -> list[Any]:
    """Each member's variables."""
    return [jax.tree.map(operator.itemgetter(number), model.variables) for number in range(len(model.members))]


def _in_float32(model: Model) -> FrozenConfigDict:
    config = written.complete(model.recipe)
    config['model']['dtype'] = 'float32'
    return FrozenConfigDict(config)


def _plain_convolution(call: Function, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
    """Has XLA's convolution take the place of `Conv`'s, whose ways suit the processor that traces it."""
    layer = context.module
    if not isinstance(layer, layers.Conv) or context.method_name != '__call__':
        return call(*arguments, **keywords)
    (x,), kernel, seen = arguments, layer.get_variable('params', 'kernel'), layer.seen(arguments[0].shape)
    found = lax.conv_general_dilated(
        x,
        kernel,
        (seen.stride, seen.stride),
        seen.margin,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=layer.features if layer.depthwise else 1,
    )
    return found + layer.get_variable('params', 'bias') if layer.use_bias else found


def largest_difference(model: Model, program: Function) -> float:
    """Between the logits of a program and the model's own, computed in float32, on CHECKED drawn heads."""
    heads = (drawing.draw_slice(index, SEED).image for index in range(CHECKED))
    images = np.stack([model.preprocess_grey(Image.fromarray(head)) for head in heads])
    own = jax.jit(functools.partial(steps.evaluate, _in_float32(model)))
    expected = np.mean([own(variables, np.arange(CHECKED), images) for variables in _networks(model)], axis=0)
    return float(np.abs(np.asarray(program(images)) - expected).max())


def _specification(model: Model) -> jax.ShapeDtypeStruct:
    (count,) = jax.export.symbolic_shape('N')
    return jax.ShapeDtypeStruct((count, model.image_size, model.image_size), jnp.uint8)


def _to_stablehlo(model: Model, function: Function) -> bytes:
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(_specification(model))
    return bytes(exported.serialize())


def _open_stablehlo(content: bytes) -> Function:
    return jax.export.deserialize(bytearray(content)).call


def _to_onnx(model: Model, function: Function) -> bytes:
    jax2onnx = _import('jax2onnx')
    logging.getLogger('onnx_ir').setLevel(logging.ERROR)  # it warns of shapes that it leaves to the reader
    names = {'model_name': 'bhcnet_jax', 'input_names': [INPUT], 'output_names': [OUTPUT]}
    program = jax2onnx.to_onnx(function, [_specification(model)], opset=OPSET, **names)
    # Its notes on shapes are from before it moves transposes, and a network with short cuts then fails to open.
    program.graph.ClearField('value_info')
    for name, value in _describe(model).items():
        program.metadata_props.add(key=name, value=value)
    return program.SerializeToString()


def _describe(model: Model) -> dict[str, str]:
    return {
        'recipe': model.name,
        'trials': json.dumps([each.trial_id for each in model.members]),
        'trained_on': model.trained_on,
        'positive_class': model.class_names[1],
        'use': 'for research only',
    }


def _open_onnx(content: bytes) -> Function:
    onnxruntime = _import('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"ONNX needs {name} ({error}). Install it: pip install 'bhcnet_jax[onnx]'.") from error


FORMATS = {'.stablehlo': (_to_stablehlo, _open_stablehlo), '.onnx': (_to_onnx, _open_onnx)}
