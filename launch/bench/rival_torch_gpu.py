"""PyTorch as a GPU wants it, as a contender (see contender.py): a step as one CUDA graph, many models by `vmap`.

A variant has `way`, one of WAYS, and for vmap `models`, how many train together. K models, B batch, H W pixels, M
augmented images of an epoch.
"""

import torch
import torch.nn.functional as F
from contender import Task, serve
from rival_torch import Torch, Training, warp
from torch_networks import Weights, create, load_weights

WARM_UPS = 3  # steps before the one that is captured, as PyTorch's guide asks for


class Captured(Training):
    """A training whose step is a CUDA graph; all batches must be of one size."""

    def __init__(self, task: Task, steps: int, plain: bool = False):
        super().__init__(task, steps, plain)
        self._indices = torch.zeros(self.config['batch_size'], dtype=torch.int64, device=self.device)
        self._graph = None

    def step(self, indices: torch.Tensor) -> torch.Tensor:
        """As of Training."""
        if self._graph is None:
            self._capture()
        self._indices.copy_(indices)
        self._graph.replay()
        self._schedule.step()
        return self._captured_loss.clone()

    def _capture(self) -> None:
        """Records a step. Weights and moments are then as they were."""
        before = [each.detach().clone() for each in self.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.update(self._indices)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._captured_loss = self.update(self._indices)
        with torch.no_grad():  # in place, since the graph knows these tensors
            for parameter, value in zip(self.parameters(), before, strict=True):
                parameter.copy_(value)
                for moment in self._optimizer.state[parameter].values():
                    moment.zero_()


class Together(Training):
    """K models as one: all arrays of parameters have a leading axis, over which `vmap` maps the loss."""

    def __init__(self, task: Task, steps: int, plain: bool = False):
        self._count = task.variant['models']
        super().__init__(task, steps, plain)

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer changes, [K, ...] each."""
        image_size, model = self.images.shape[-1], self.config['model']
        each = [create(model, image_size).to(self.device, memory_format=self._layout) for _ in range(self._count)]
        self._stacked, _ = torch.func.stack_module_state(each)
        return list(self._stacked.values())

    def load(self, weights: Weights) -> None:
        """Starts all models from weights of a Task."""
        load_weights(self.model, weights)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self._stacked[name].copy_(parameter)

    def shuffled(self, sources: torch.Tensor) -> torch.Tensor:
        """int64 [M] -> [K, M], in another random order for each model."""
        return sources[torch.rand(self._count, len(sources), device=self.device).argsort(dim=1)]

    def _eager_loss(self, images: torch.Tensor, labels: torch.Tensor, matrices: torch.Tensor | None) -> torch.Tensor:
        """The sum of the models' losses, whose gradient is of each model that of its own."""
        inputs = images.flatten(0, 1)
        inputs = inputs.float() / 255.0 if matrices is None else warp(inputs, matrices)

        def loss(parameters: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            logits = torch.func.functional_call(self.model, parameters, (inputs,))
            return F.binary_cross_entropy_with_logits(logits.float(), labels)

        with torch.autocast(self.device, torch.bfloat16, enabled=self._bfloat16):
            mapped = torch.vmap(loss, randomness='different')
            return mapped(self._stacked, inputs.unflatten(0, images.shape[:2]), labels).sum()

    def step(self, indices: torch.Tensor) -> torch.Tensor:
        """indices: int64 [K, B], or [B], which are the same for all models. Returns their mean loss."""
        return super().step(indices.expand(self._count, -1)) / self._count


WAYS = {'eager': Training, 'graph': Captured, 'vmap': Together}


def make(task: Task) -> Torch:
    """PyTorch as a contender."""
    # As JAX has it by default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Torch(task, WAYS[task.variant['way']])


if __name__ == '__main__':
    serve(make)
