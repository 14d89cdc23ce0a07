"""Weights cut up among processes, and put together again. Knows torch's tensors, nothing of training loops or files.

A cut-up weight is a DTensor: it has the shape of the whole, and a process holds some of its rows. Importing that class
costs time that most runs need not spend, so it is known by what it can do.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_ROWS = "rows of this process"


def shard(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Cut up the weights of a network so that one block at a time is whole, while it computes.

    Args:
        model: The network; doing it a second time changes nothing.
        mesh: The processes, in one row.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    # Shares are rows, which weights with their colours innermost do not have.
    model.to(memory_format=torch.contiguous_format)
    for stage in model.children():
        for block in stage.children():
            if isinstance(stage, nn.Sequential) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    # By default the outermost stays whole after a forward, and would not see weights that change before the next one.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_cut(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of it."""
    return hasattr(tensor, "full_tensor")


def share_of(tensor: Tensor) -> Tensor:
    """Return what this process holds of a weight; changing it changes the weight."""
    share: Tensor = cast("Any", tensor).to_local() if is_cut(tensor) else tensor
    return share


def whole(tensor: Tensor) -> Tensor:
    """Put a weight together from all processes, which must all ask for it."""
    put_together: Tensor = cast("Any", tensor).full_tensor() if is_cut(tensor) else tensor
    return put_together


def cut_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Cut up a whole tensor, which every process has, as another is."""
    if not is_cut(example):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    place = cast("Any", example)
    return distribute_tensor(
        tensor.to(share_of(example).device), place.device_mesh, place.placements, src_data_rank=None
    )


def load_whole(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network, cut up or not, the weights of a whole one."""
    own = model.state_dict()
    model.load_state_dict({name: cut_like(each, own.get(name, each)) for name, each in weights.items()})


def load_whole_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give the optimizer of a network, cut up or not, the state of a whole one's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        number: {
            name: cut_like(value, parameters[number])
            if getattr(value, "shape", None) == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def share_buffers(model: nn.Module) -> None:
    """Give every process the statistics of the first one; all processes must do it."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.broadcast(flat, 0)
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    # All at once: a network has a hundred of them, and each would be a call of its own after every step.
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def own_share(tree: Any) -> Any:
    """Replace every cut-up tensor in nested dicts and lists by the rows of this process, marked as such."""
    if isinstance(tree, Tensor):
        return {_ROWS: share_of(tree).cpu()} if is_cut(tree) else tree
    if isinstance(tree, Mapping):
        return {name: own_share(inner) for name, inner in tree.items()}
    if isinstance(tree, list | tuple):
        return [own_share(inner) for inner in tree]
    return tree


def joined(shares: Sequence[Any]) -> Any:
    """Put the shares of all processes, in their order, together to what it was; what is not cut up is the first's."""
    first = shares[0]
    if isinstance(first, Mapping):
        if _ROWS in first:
            return torch.cat([share[_ROWS] for share in shares])
        return {name: joined([share[name] for share in shares]) for name in first}
    if isinstance(first, list):
        return [joined(list(inner)) for inner in zip(*shares, strict=True)]
    return first
