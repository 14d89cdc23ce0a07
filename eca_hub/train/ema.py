"""An exponential moving average of the weights, which often classifies better than the last weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eca_hub.train.distributed.fsdp import full_tensor, local_shard, shard_like


class EMA:
    """The exponential moving average of a network's weights and of the statistics of its norms.

    It is kept in float32 at least, whatever the precision of the network: with a decay of 0.9999 an update is lost in
    bfloat16. `swap_in` puts it into the network for a validation, `swap_out` restores the network.

    Args:
        model: The network; the average starts as its weights.
        decay: Share of the old average that an update keeps, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights: dict[str, Tensor] = {}
        self._own_weights: dict[str, Tensor] | None = None
        self.reset(model)

    def reset(self, model: nn.Module) -> None:
        """Start again from the weights of a network."""
        self.weights = {name: _widened(tensor.detach()).clone() for name, tensor in model.state_dict().items()}
        self._own_weights = None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights, after an optimizer step.

        Args:
            model: The network.
            step: Number of steps made. The first ones weigh more, so that the initial weights soon have no effect.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        current = model.state_dict()
        names = [name for name, tensor in current.items() if tensor.is_floating_point()]
        self.weights = {
            name: self.weights[name].to(tensor.device, _at_least(self.weights[name].dtype, tensor.dtype))
            for name, tensor in current.items()
        }
        average = [local_shard(self.weights[name]) for name in names]
        target = [local_shard(current[name]).to(own.dtype) for name, own in zip(names, average, strict=True)]
        torch._foreach_lerp_(average, target, 1 - decay)
        for name in current.keys() - set(names):
            self.weights[name].copy_(current[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from a saved average of full tensors."""
        for name, tensor in weights.items():
            # As wide as it was saved; in place, to keep the memory layout: another one would round differently.
            self.weights[name] = self.weights[name].to(_at_least(self.weights[name].dtype, tensor.dtype))
            self.weights[name].copy_(shard_like(tensor, self.weights[name]))

    def full_weights(self) -> dict[str, Tensor]:
        """Return the average; where it is sharded, all processes must call this."""
        return {name: full_tensor(tensor) for name, tensor in self.weights.items()}

    @torch.no_grad()
    def swap_in(self, model: nn.Module) -> None:
        """Put the average into the network, until `swap_out`."""
        if self._own_weights is not None:
            return
        current = {name: local_shard(tensor) for name, tensor in model.state_dict().items()}
        self._own_weights = {name: tensor.clone() for name, tensor in current.items()}
        for name, tensor in current.items():
            tensor.copy_(local_shard(self.weights[name]))

    @torch.no_grad()
    def swap_out(self, model: nn.Module) -> None:
        """Give the network its own weights back, if the average is in it."""
        if self._own_weights is None:
            return
        for name, tensor in model.state_dict().items():
            local_shard(tensor).copy_(self._own_weights[name])
        self._own_weights = None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(_at_least(torch.float32, tensor.dtype))


def _at_least(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the wider of two floating-point types; types of whole numbers stay as they are."""
    return torch.promote_types(dtype, other) if other.is_floating_point else other
