"""The same training in PyTorch, as a contender (see contender.py), and for `torch_trial.py`.

B batch, H W pixels, M augmented images of an epoch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contender import PEAK_SIZE, Task, serve
from torch_networks import Weights, create, load_weights


def draw_affine(strengths: dict[str, float], count: int, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """Random arguments of `affine_matrices`, [count] each, within `config.augment.affine`."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(count, *shape, device=device).uniform_(low, high)

    zoom, rotation, shift = strengths['zoom'], strengths['rotation'], strengths['shift']
    return {
        'flip': torch.rand(count, device=device) < strengths['flip'],
        'shear': uniform(0.0, strengths['shear']),
        'zoom': uniform(1.0 - zoom, 1.0 + zoom),
        'rotation': uniform(-rotation, rotation),
        'shift': uniform(-shift, shift, 2),
    }


def affine_matrices(
    flip: torch.Tensor, shear: torch.Tensor, zoom: torch.Tensor, rotation: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Maps from output to source, float32 [B, 2, 3] for `affine_grid`; arguments as of `augment.affine`, [B, ...]."""
    angle, slope = torch.deg2rad(rotation), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(angle), torch.sin(angle)
    sign = torch.where(flip, -1.0, 1.0)
    # x to the right, y down, both from -1 to 1 over a square image.
    x_row = torch.stack([sign * (cos - slope * sin), -sign * (sin + slope * cos)], -1)
    matrices = torch.stack([x_row, torch.stack([sin, cos], -1)], 1) / zoom[:, None, None]
    offsets = -matrices @ (2.0 * shift.flip(1)[:, :, None])
    return torch.cat([matrices, offsets], -1)


def warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 1, H, W] -> float32 in [0, 1], sampled bilinearly at the sources of its pixels, black outside."""
    images = images.float() / 255.0
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate: linear from 0 over the first `warmup` of the steps, then a cosine to 0."""
    warm = round(warmup * steps)
    if step < warm:
        return step / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (steps - warm))) if step < steps else 0.0


class Training:
    """One training of `steps` steps.

    variant: dtype, compile, channels_last, device ('cpu' without it). plain: no augmentation, no dropout.
    """

    def __init__(self, task: Task, steps: int, plain: bool = False):
        self.config, variant = task.config, task.variant
        self.device = variant.get('device', 'cpu')
        self.images = torch.from_numpy(task.images)[:, None].to(self.device)  # [N, 1, H, W]
        self.labels = torch.from_numpy(task.labels).float().to(self.device)
        self._strengths = None if plain else self.config['augment']['affine']
        model = self.config['model'] | ({'dropout': 0.0} if plain else {})
        self.model = create(model, task.images.shape[1])
        self._layout = torch.channels_last if variant.get('channels_last') else torch.contiguous_format
        self.model.to(self.device, memory_format=self._layout)
        self._bfloat16 = variant['dtype'] == 'bfloat16'
        self._loss = torch.compile(self._eager_loss) if variant.get('compile') else self._eager_loss
        settings = self.config['optimizer']
        captured = self.device != 'cpu'  # so that a step can be; it then reads the rate from the device
        rate = torch.tensor(settings['peak_lr'], device=self.device) if captured else settings['peak_lr']
        self._optimizer = torch.optim.AdamW(
            self.parameters(), rate, weight_decay=settings['weight_decay'], fused=True, capturable=captured
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: rate_factor(step, steps, settings['warmup'])
        )

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer changes."""
        return list(self.model.parameters())

    def _eager_loss(self, images: torch.Tensor, labels: torch.Tensor, matrices: torch.Tensor | None) -> torch.Tensor:
        inputs = images.float() / 255.0 if matrices is None else warp(images, matrices)
        return F.binary_cross_entropy_with_logits(self.logits(inputs), labels)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 [B, 1, H, W] in [0, 1] -> float32 [B]."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self._bfloat16):
            return self.model(inputs.contiguous(memory_format=self._layout)).float()

    def step(self, indices: torch.Tensor) -> torch.Tensor:
        """indices: int64 [B], of the images. Returns their loss."""
        loss = self.update(indices)
        self._schedule.step()
        return loss

    def update(self, indices: torch.Tensor) -> torch.Tensor:
        """`step` at the learning rate as it is."""
        matrices = None
        if self._strengths is not None:
            matrices = affine_matrices(**draw_affine(self._strengths, indices.numel(), self.device))
        loss = self._loss(self.images[indices], self.labels[indices], matrices)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def shuffled(self, sources: torch.Tensor) -> torch.Tensor:
        """int64 [M] -> the same in random order, batches along the last axis."""
        return sources[torch.randperm(len(sources), device=self.device)]

    def epoch(self, sources: torch.Tensor) -> float:
        """sources: int64 [M]. Returns the mean loss."""
        self.model.train()
        batches = self.shuffled(sources).split(self.config['batch_size'], dim=-1)
        return float(torch.stack([self.step(batch) for batch in batches]).mean())

    def load(self, weights: Weights) -> None:
        """Starts from weights of a Task."""
        load_weights(self.model, weights)

    @torch.inference_mode()
    def evaluate(self, indices: torch.Tensor) -> tuple[float, float]:
        """indices: int64, of the images. Returns their loss and accuracy."""
        self.model.eval()
        logits, labels = self.logits(self.images[indices].float() / 255.0), self.labels[indices]
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        return float(loss), float(((logits >= 0) == (labels == 1)).float().mean())


class Torch:
    """PyTorch as a contender. way: how it trains."""

    def __init__(self, task: Task, way: type[Training] = Training):
        self._task, self._way = task, way
        steps = -(-len(task.sources) // task.config['batch_size'])
        self._training = way(task, task.config['balanced']['epochs'] * steps)
        self._sources = torch.from_numpy(task.sources).long().to(self._training.device)

    def train(self) -> None:
        self._training.epoch(self._sources)

    def first_losses(self) -> list[float]:
        training = self._way(self._task, len(self._task.batches), plain=True)
        training.load(self._task.weights)
        batches = torch.from_numpy(self._task.batches).long().to(training.device)
        return [float(training.step(batch)) for batch in batches]

    def multiply(self) -> Callable[[], Any]:
        a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
        return lambda: torch.mm(a, b)


if __name__ == '__main__':
    serve(Torch)
