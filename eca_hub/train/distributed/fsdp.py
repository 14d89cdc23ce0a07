"""Convert between full tensors and DTensor shards, for training with sharded weights (torch's FSDP2).

A sharded weight is a DTensor: it has the shape of the full one, and a process holds some of its rows. Importing DTensor
takes time that most runs need not spend, so it is recognized by its methods.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from eca_hub.train.checkpoint.store import LOCAL_ROWS

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_model(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Shard the weights of a network; during a forward one block at a time is gathered.

    Args:
        model: The network; sharding it a second time changes nothing.
        mesh: The processes, a mesh of one dimension.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    # Shards are rows, which weights in channels_last do not have.
    model.to(memory_format=torch.contiguous_format)
    for stage in model.children():
        for block in stage.children():
            if isinstance(stage, nn.Sequential) and any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    # By default the root stays gathered after a forward, and would miss weights that change before the next one.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of the tensor."""
    return hasattr(tensor, "full_tensor")


def local_shard(tensor: Tensor) -> Tensor:
    """Return the rows of this process; changing them in place changes the tensor."""
    shard: Tensor = cast("Any", tensor).to_local() if is_sharded(tensor) else tensor
    return shard


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor; all processes must call it."""
    gathered: Tensor = cast("Any", tensor).full_tensor() if is_sharded(tensor) else tensor
    return gathered


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard a full tensor, which every process has, in the way of another one; a sharded one stays as it is."""
    if not is_sharded(example) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout = cast("Any", example)
    return distribute_tensor(
        tensor.to(local_shard(example).device), layout.device_mesh, layout.placements, src_data_rank=None
    )


def load_full_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load full weights into a network that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(each, own.get(name, each)) for name, each in weights.items()})


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the full state of an optimizer into one whose network may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        number: {
            name: shard_like(value, parameters[number])
            if getattr(value, "shape", None) == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the floating-point buffers (the statistics of norms) of rank 0 to all processes."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.broadcast(flat, 0)
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    # One call for all: a network has a hundred of them, and this runs after every step.
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def local_state(tree: Any) -> Any:
    """Replace every sharded tensor in nested dicts and lists by `{LOCAL_ROWS: rows of this process}`."""
    if isinstance(tree, Tensor):
        return {LOCAL_ROWS: local_shard(tree).cpu()} if is_sharded(tree) else tree
    if isinstance(tree, Mapping):
        return {name: local_state(inner) for name, inner in tree.items()}
    if isinstance(tree, list | tuple):
        return [local_state(inner) for inner in tree]
    return tree
