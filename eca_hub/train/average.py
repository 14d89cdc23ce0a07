"""A running average of the weights, which is often better than the last ones. Knows nothing of training loops."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WeightAverage:
    """The exponential moving average of a network's weights and of its norms' statistics.

    Args:
        model: The network; the average starts as its weights.
        decay: Share of the old average that stays at every step, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after a step.

        Args:
            model: The network.
            step: How many steps were made; the first ones weigh more, so that random weights are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        now = model.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        device = next(iter(now.values())).device
        if next(iter(self.weights.values())).device != device:
            self.weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        torch._foreach_lerp_([self.weights[name] for name in floats], [now[name] for name in floats], 1 - decay)
        for name in now.keys() - set(floats):
            self.weights[name].copy_(now[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        for name, tensor in weights.items():
            # Into the layout in memory that the average had: another one rounds differently.
            self.weights[name].copy_(tensor)

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Run a network with the average instead of its own weights."""
        weights = {name: tensor.to(x.device) for name, tensor in self.weights.items()}
        output: Tensor = functional_call(model, weights, (x,), strict=True)
        return output
