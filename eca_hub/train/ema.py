"""A running average of the weights, which is often better than the last ones. Knows nothing of training loops."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eca_hub.train.distributed.fsdp import cut_like, is_cut, share_of, whole


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
        self.weights = {name: self.weights[name].to(tensor.device) for name, tensor in now.items()}
        average, target = ([share_of(of[name]) for name in floats] for of in (self.weights, now))
        torch._foreach_lerp_(average, target, 1 - decay)
        for name in now.keys() - set(floats):
            self.weights[name].copy_(now[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from a saved average, which is whole."""
        for name, tensor in weights.items():
            # Into the layout in memory that the average had: another one rounds differently.
            self.weights[name].copy_(cut_like(tensor, self.weights[name]))

    def whole(self) -> dict[str, Tensor]:
        """Return the average; where it is cut up, all processes must ask for it."""
        return {name: whole(tensor) for name, tensor in self.weights.items()}

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Run a network with the average instead of its own weights."""
        weights = {name: tensor.to(x.device) for name, tensor in self.weights.items()}
        if any(is_cut(tensor) for tensor in weights.values()):
            return self._forward_cut(model, weights, x)
        output: Tensor = functional_call(model, weights, (x,), strict=True)
        return output

    @torch.no_grad()
    def _forward_cut(self, model: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Lend the network the average: what is cut up is put together from the network's own memory only."""
        own = {name: share_of(tensor) for name, tensor in model.state_dict().items()}
        kept = {name: tensor.clone() for name, tensor in own.items()}
        try:
            for name, tensor in own.items():
                tensor.copy_(share_of(weights[name]))
            output: Tensor = model(x)
        finally:
            for name, tensor in own.items():
                tensor.copy_(kept[name])
        return output
