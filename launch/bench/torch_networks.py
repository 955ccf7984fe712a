"""The networks of the project in PyTorch: torchvision's and timm's own where they have them, plain modules otherwise.

For one grey channel and one logit, with dropout where the project has it. B batch, H W pixels, C channels, T rows, D
features, U units.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

Model = Mapping[str, Any]  # the section `model` of a config, of width 1
Weights = Mapping[str, np.ndarray]  # of `contender.Task`
GREYS = {'efficientnet_lite0': (0.5, 0.5)}  # mean and deviation that the input is normalised with
GREYS |= dict.fromkeys(('resnet18', 'resnet50'), (0.449, 0.226))
TIMM = {'efficientnet_lite0': 'tf_efficientnet_lite0'}  # where timm has another name


def create(model: Model, image_size: int) -> nn.Sequential:
    """float32 [B, 1, H, W] in [0, 1] -> logits [B], with random weights."""
    network = nn.Sequential(*BUILDERS[model['name']](model, image_size), nn.Flatten(0))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def parameters(network: nn.Module) -> int:
    """How many are trained: all but the spare ones of `Rows`."""
    spare = sum(layer.spare for layer in network.modules() if isinstance(layer, Rows))
    return sum(each.numel() for each in network.parameters()) - spare


def load_weights(network: nn.Module, weights: Weights) -> None:
    """ValueError if the network has more or fewer."""
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), _arranged(weights), strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def _arranged(weights: Weights) -> list[np.ndarray]:
    """In PyTorch's order of axes: kernels OIHW and [units, D]; gates in one array."""
    arranged, channels = [], 0
    gates = {name.split('/', 1)[1]: value for name, value in weights.items() if name.startswith(('lstm/', 'gru/'))}
    for name, value in weights.items():
        if value.ndim == 4:
            arranged.append(value.transpose(3, 2, 0, 1))
            channels = value.shape[-1]
        elif name == 'dense1/kernel':  # of maps, which PyTorch flattens with the channels first
            arranged.append(value.reshape(-1, channels, value.shape[-1]).transpose(2, 1, 0).reshape(value.shape[::-1]))
        elif name == 'head/logit/kernel':
            arranged += [*_joined(gates), value.T]
        elif not name.startswith(('lstm/', 'gru/')):
            arranged.append(value.T)
    return arranged


def _joined(gates: Weights) -> list[np.ndarray]:
    """What `Rows` has, of kernels and biases like 'ii/kernel' and 'hi/bias' of the gates i, f, g, o or r, z, n."""

    def join(source: str, leaf: str, letters: str) -> np.ndarray:
        return np.concatenate([gates[f'{source}{letter}/{leaf}'] for letter in letters], axis=-1)

    if not gates:
        return []
    letters, source = ('ifgo', 'h') if 'ii/kernel' in gates else ('rzn', 'i')
    bias = join(source, 'bias', letters)
    second = np.zeros_like(bias)
    if source == 'i':
        second[-len(bias) // 3 :] = gates['hn/bias']
    return [join('i', 'kernel', letters).T, join('h', 'kernel', letters).T, bias, second]


def _blocks(model: Model) -> list[nn.Module]:
    """The paper's blocks of 3x3 convolutions, [B, 1, H, W] -> [B, C, H / 2^(blocks - 1), ...]."""
    layers, channels = [], 1
    features = [count for count in model['filters'] for _ in range(model['convs'])]
    for number, count in enumerate(features, 1):
        layers.append(nn.Conv2d(channels, count, 3, padding=1))
        if model['norm'] == 'group':
            layers.append(nn.GroupNorm(count // math.gcd(count, 8), count, eps=1e-6))
        layers.append(nn.ReLU(inplace=True))
        if number % model['convs'] == 0 and number < len(features):
            layers.append(nn.MaxPool2d(2))
        channels = count
    return layers


class MeanMax(nn.Module):
    """[B, C, H, W] -> [B, 2 C]: mean and maximum of the pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def _cnn(model: Model, image_size: int) -> list[nn.Module]:
    pooling, channels = [nn.AdaptiveAvgPool2d(1), nn.Flatten()], model['filters'][-1]
    if model['pooling'] == 'mean_max':
        pooling, channels = [MeanMax()], 2 * channels
    return [*_blocks(model), *pooling, nn.Dropout(model['dropout']), nn.Linear(channels, 1)]


class Rows(nn.Module):
    """An LSTM or GRU that reads maps row by row, [B, C, H, W] -> its last state, [B, U].

    PyTorch's have two biases where the project has one: `spare` parameters, which stay 0.
    """

    def __init__(self, name: str, features: int, units: int):
        super().__init__()
        kind, gates = {'cnn_lstm': (nn.LSTM, 4), 'cnn_gru': (nn.GRU, 2)}[name]
        self.recurrent, self.spare = kind(features, units, batch_first=True), gates * units
        second = self.recurrent.bias_hh_l0
        is_used = torch.arange(len(second)) >= self.spare
        with torch.no_grad():
            second.mul_(is_used)
        second.register_hook(lambda gradient: gradient * is_used)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(2)  # [B, T, W C]
        return self.recurrent(rows)[0][:, -1]


def _recurrent(model: Model, image_size: int) -> list[nn.Module]:
    features = model['filters'][-1] * (image_size >> (len(model['filters']) - 1))
    rows = Rows(model['name'], features, model['recurrent_units'])
    return [*_blocks(model), rows, nn.Dropout(model['dropout']), nn.Linear(model['recurrent_units'], 1)]


class Squash(nn.Module):
    """LeNet-5's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """The mean of 2x2 pixels, with a factor and a bias for each map, [B, C, H, W] -> [B, C, H/2, W/2]."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale[:, None, None] * nn.functional.avg_pool2d(x, 2) + self.bias[:, None, None]


def _lenet(model: Model, image_size: int) -> list[nn.Module]:
    return [
        nn.AdaptiveAvgPool2d(32),  # the project's areas where image_size is a multiple of 32
        nn.Conv2d(1, 6, 5), Squash(), Subsampling(6), Squash(),
        nn.Conv2d(6, 16, 5), Squash(), Subsampling(16), Squash(), nn.Flatten(),
        nn.Linear(400, 120), Squash(), nn.Dropout(model['dropout']),
        nn.Linear(120, 84), Squash(), nn.Dropout(model['dropout']), nn.Linear(84, 1),
    ]  # fmt: skip


def _torchvision(model: Model, image_size: int) -> list[nn.Module]:
    """AlexNet and VGG: torchvision's convolutions, and its classifier for the maps as they are.

    torchvision pools the maps to the size that 224 pixels a side leave: for smaller images it repeats pixels, which
    adds weights. Its AlexNet has dropout before both dense layers, the project, like VGG, after them.
    """
    import torchvision  # here, so that the others need not wait for it

    features = getattr(torchvision.models, model['name'])().features
    first = features[0]
    features[0] = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding)
    with torch.no_grad():
        count = features(torch.zeros(1, 1, image_size, image_size)).numel()
    return [
        features, nn.Flatten(),
        nn.Linear(count, 4096), nn.ReLU(inplace=True), nn.Dropout(model['dropout']),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(model['dropout']), nn.Linear(4096, 1),
    ]  # fmt: skip


def _googlenet(model: Model, image_size: int) -> list[nn.Module]:
    """torchvision's, but as published: no normalisation, 5x5 kernels where it has 3x3, and the fourth pooling of 3x3.

    Without auxiliary classifiers.
    """
    published = importlib.import_module('torchvision.models.googlenet')  # a function of the package hides it

    class Conv(nn.Sequential):
        def __init__(self, inputs: int, outputs: int, **window: int):
            super().__init__(nn.Conv2d(inputs, outputs, **window), nn.ReLU(inplace=True))

    class Inception(published.Inception):
        def __init__(self, *channels: int):
            super().__init__(*channels, conv_block=Conv)
            self.branch3[1] = Conv(*channels[4:6], kernel_size=5, padding=2)

    blocks = [Conv, Inception, published.InceptionAux]
    network = published.GoogLeNet(1, False, init_weights=False, blocks=blocks, dropout=model['dropout'])
    network.conv1 = Conv(1, 64, kernel_size=7, stride=2, padding=3)
    network.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return [network]


class Normalised(nn.Module):
    """Greys less their mean, over their deviation."""

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self._mean, self._deviation = mean, deviation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self._mean) / self._deviation


def _timm(model: Model, image_size: int) -> list[nn.Module]:
    import timm

    name = model['name']
    network = timm.create_model(TIMM.get(name, name), in_chans=1, num_classes=1, drop_rate=model['dropout'])
    return [Normalised(*GREYS[name]), network]


BUILDERS: dict[str, Callable[[Model, int], list[nn.Module]]] = {
    'cnn': _cnn,
    'cnn_lstm': _recurrent,
    'cnn_gru': _recurrent,
    'lenet5': _lenet,
    'alexnet': _torchvision,
    'vgg11': _torchvision,
    'vgg16': _torchvision,
    'googlenet': _googlenet,
    'resnet18': _timm,
    'resnet50': _timm,
    'efficientnet_lite0': _timm,
}
