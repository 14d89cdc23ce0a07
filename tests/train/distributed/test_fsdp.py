"""Sharded weights, optimizers, averages and checkpoints equal the full ones; strategies and synchronized norms."""

import copy
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from eca_hub.atomic import metadata_of, shared_temporary, verify
from eca_hub.errors import InvalidConfig
from eca_hub.train.checkpoint.store import LOCAL_ROWS, VerifiedCheckpointIO, complete_shards, unshard, write_shard
from eca_hub.train.distributed.fsdp import (
    full_tensor,
    is_sharded,
    load_full_optimizer_state,
    load_full_weights,
    local_state,
    shard_model,
)
from eca_hub.train.distributed.strategies import FSDP2Strategy, SyncBatchNormPlugin, make_strategy
from eca_hub.train.ema import EMA
from eca_hub.train.errors import CheckpointCorrupt
from tests.train.runs import fit


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process, in which weights can be sharded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    x = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    torch.autograd.backward(nn.functional.cross_entropy(model(x), torch.tensor([0, 1])))
    optimizer.step()


@pytest.mark.usefixtures("alone")
def test_a_sharded_network_with_its_optimizer_continues_where_a_full_one_stopped() -> None:
    models = network(), network()
    shard_model(models[0], init_device_mesh("cpu", (1,)))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models]
    step(models[1], optimizers[1])
    load_full_weights(models[0], models[1].state_dict())
    load_full_optimizer_state(optimizers[0], copy.deepcopy(optimizers[1].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    assert all(is_sharded(parameter) for parameter in models[0].parameters())
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(full_tensor(tensor), models[1].state_dict()[name])


@pytest.mark.usefixtures("alone")
def test_the_average_of_a_sharded_network_is_that_of_a_full_one() -> None:
    models = network(), network()
    shard_model(models[0], init_device_mesh("cpu", (1,)))
    averages = [EMA(model, 0.5) for model in models]
    outputs = []
    x = torch.ones(1, 3, 8, 8)
    for model, average in zip(models, averages, strict=True):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        average.update(model, step=1000)
        own = [full_tensor(tensor).clone() for tensor in model.state_dict().values()]
        average.swap_in(model)
        with torch.no_grad():
            outputs.append(model.eval()(x))
        average.swap_out(model)
        for tensor, before in zip(model.state_dict().values(), own, strict=True):
            assert torch.equal(full_tensor(tensor), before)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(averages[0].full_weights(), averages[1].full_weights())


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_sharded_weights_holds_plain_tensors(tmp_path: Path) -> None:
    model = network()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shard_model(model, init_device_mesh("cpu", (1,)))
    path = tmp_path / "a.ckpt"
    write_shard(path, local_state({"state_dict": model.state_dict(), "steps": [1, (2, 3)]}), 0, 1)
    complete_shards(path, {"step": 7})
    read = VerifiedCheckpointIO().load_checkpoint(path)
    torch.testing.assert_close(read["state_dict"], expected)
    assert not any(is_sharded(tensor) for tensor in read["state_dict"].values())
    assert read["steps"] == [1, [2, 3]]


def test_the_rows_of_all_processes_are_merged_in_order_and_the_rest_is_that_of_rank_0() -> None:
    shares = [
        {"weight": {LOCAL_ROWS: torch.full((2 - rank, 3), rank)}, "epoch": rank, "list": [rank]} for rank in (0, 1)
    ]
    read = unshard(shares)
    assert read["weight"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert (read["epoch"], read["list"]) == (0, [0])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step.ckpt"
    for rank in (0, 1):
        write_shard(path, {"rank": rank}, rank, 2)
    complete_shards(path, {"step": 7})
    return path


def test_a_folder_of_shards_has_a_checksum_and_no_temporary_folder(checkpoint: Path) -> None:
    verify(checkpoint)
    assert metadata_of(checkpoint)["step"] == 7
    assert not shared_temporary(checkpoint).exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_folder_that_was_changed_is_refused(damage: str, checkpoint: Path) -> None:
    first, _ = sorted(checkpoint.iterdir())
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    else:
        (checkpoint / "00002-of-00002.pt").touch()
    with pytest.raises(CheckpointCorrupt, match="another SHA-256"):
        VerifiedCheckpointIO().load_checkpoint(checkpoint)


def test_a_folder_is_replaced_by_a_new_one_of_its_name(checkpoint: Path) -> None:
    write_shard(checkpoint, {"rank": 5}, 0, 1)
    complete_shards(checkpoint, {"step": 8})
    assert VerifiedCheckpointIO().load_checkpoint(checkpoint) == {"rank": 5}
    assert metadata_of(checkpoint)["step"] == 8


# names of strategies, and norms


def test_fsdp_is_the_strategy_of_this_project() -> None:
    assert isinstance(make_strategy({"strategy": "fsdp"})["strategy"], FSDP2Strategy)
    assert make_strategy({"strategy": "ddp"}) == make_strategy({"strategy": "auto"}) == {}
    with pytest.raises(InvalidConfig, match=r"fsdp_cpu_offload is not supported\. Give --trainer.strategy fsdp"):
        make_strategy({"strategy": "fsdp_cpu_offload"})


@pytest.mark.parametrize("name", ["resnet20", pytest.param("densenet161", marks=pytest.mark.slow)])
def test_synchronized_norms_compute_what_the_norms_before_computed(name: str) -> None:
    import eca_hub

    model = eca_hub.create_model(name, attention="none" if "dense" in name else "eca", num_classes=3).eval()
    x = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        changed = SyncBatchNormPlugin().apply(model)
        torch.testing.assert_close(changed(x), before)
    norms = [module for module in changed.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


@pytest.mark.slow
def test_synchronized_norms_are_refused_without_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trainer.sync_batchnorm", "true", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert fit(tmp_path / "run", *options) == 2
    assert "--trainer.sync_batchnorm works between GPUs only" in capsys.readouterr().err
