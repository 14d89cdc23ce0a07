"""How fast is a gate? ECA, its rivals and timm's layers on the maps of ResNet-50, against the memory floor.

    python experiments/bench_attention.py                        a few minutes: eca, se, timm's and the official layer
    python experiments/bench_attention.py --methods all          every method of eca_hub
    python experiments/bench_attention.py --networks             whole networks: ECA-ResNet-50 against ResNet-50
    python experiments/bench_attention.py --device cuda --compiled --json rows.json

Rivals run in turns (A, B, C, A, B, C, ...) and the fastest of many turns counts, so that a busy machine slows all
alike. The floor is one copy and one sum of the map, measured in the same turns: what reading it twice and writing it
once costs at least. Maps are positive and gates are close to 1, because a map that is overwritten again and again by
smaller numbers ends in denormals.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers.eca import EcaModule
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

import eca_hub

STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
"""Channels and side of the maps that attention rescales in ResNet-50, for a picture of 224 px."""
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BUDGET_ELEMENTS = 400_000_000
"""Elements that all turns of one comparison may touch: small maps get many turns, large ones a few."""


class Official(nn.Module):
    """An equal of the layer in the authors' repository: adaptive pooling, two transpositions, expanded product."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_hub.kernel_size_for(channels)
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_NC1 = self.pool(x_NCHW).squeeze(-1)
        gate_NC11 = self.conv(mean_NC1.transpose(1, 2)).transpose(1, 2).sigmoid().unsqueeze(-1)
        y_NCHW: Tensor = x_NCHW * gate_NC11.expand_as(x_NCHW)
        return y_NCHW


def owned_eca(channels: int) -> nn.Module:
    """ECA as it stands in a network, where nobody else reads its input."""
    layer = eca_hub.ECA(channels)
    layer.owns_input = True
    return layer


def open_gates(layer: nn.Module) -> nn.Module:
    """Give every weight one positive value, so that gates are close to 1."""
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 20.0)
    return layer


def fastest_s(rivals: dict[str, Callable[[], object]], turns: int, device: str) -> dict[str, float]:
    """Run the rivals in turns; give the fastest time of each."""
    best = dict.fromkeys(rivals, math.inf)
    for turn in range(turns + 2):
        for name, run in rivals.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start_s = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                best[name] = min(best[name], time.perf_counter() - start_s)
    return best


def layers_for(channels: int, methods: list[str], compiled: bool) -> dict[str, nn.Module]:
    """Make the rivals for maps of so many channels."""
    layers = {
        "eca in a network": owned_eca(channels),
        "eca": eca_hub.ECA(channels),
        "timm eca": EcaModule(channels),
        "timm se": SEModule(channels),
        "official eca": Official(channels),
        **{name: eca_hub.ATTENTIONS[name](channels) for name in methods if name != "eca"},
    }
    layers = {name: open_gates(layer) if "eca" in name else layer for name, layer in layers.items()}
    return {name: torch.compile(layer) if compiled else layer for name, layer in layers.items()}  # type: ignore[misc]


def gate_rows(batches: list[int], methods: list[str], device: str, compiled: bool) -> Iterator[dict[str, Any]]:
    """Time every rival on every map, forward without gradients and forward with backward."""
    for memory_format in FORMATS:
        for batch in batches:
            for channels, side_px in STAGES:
                x_NCHW = torch.rand(batch, channels, side_px, side_px, device=device) + 0.5
                x_NCHW = x_NCHW.contiguous(memory_format=FORMATS[memory_format])
                layers = {k: v.to(device).eval() for k, v in layers_for(channels, methods, compiled).items()}
                turns = max(4, min(100, BUDGET_ELEMENTS // (x_NCHW.numel() * len(layers))))
                for mode in ("inference", "training"):
                    best_s = fastest_s(_rivals(layers, x_NCHW, mode), turns, device)
                    floor_s = best_s.pop("floor")
                    for name, took_s in best_s.items():
                        yield {
                            "layer": name,
                            "mode": mode,
                            "format": memory_format,
                            "batch": batch,
                            "channels": channels,
                            "map_mib": x_NCHW.numel() * 4 / 2**20,
                            "time_us": took_s * 1e6,
                            "floors": took_s / floor_s,
                            "timm_eca_times": best_s["timm eca"] / took_s,
                        }


def _rivals(layers: dict[str, nn.Module], x_NCHW: Tensor, mode: str) -> dict[str, Callable[[], object]]:
    buffer_NCHW, own_NCHW = torch.empty_like(x_NCHW), x_NCHW.clone()
    dy_NCHW, leaf_NCHW = torch.ones_like(x_NCHW), x_NCHW.clone().requires_grad_()

    def floor() -> None:
        buffer_NCHW.copy_(x_NCHW)
        x_NCHW.sum()

    def infer(name: str) -> None:
        with torch.no_grad():
            layers[name](own_NCHW if name == "eca in a network" else x_NCHW)

    def train(name: str) -> None:
        leaf_NCHW.grad = None
        layers[name](leaf_NCHW).backward(dy_NCHW)

    run = infer if mode == "inference" else train
    return {"floor": floor, **{name: partial(run, name) for name in layers}}


def network_rows(batches: list[int], device: str) -> Iterator[dict[str, Any]]:
    """Time ECA-ResNet-50 against ResNet-50: inference and a training step without the optimizer."""
    nets = {name: eca_hub.create_model(name).to(device) for name in ("resnet50", "eca_resnet50", "se_resnet50")}
    for batch in batches:
        x_N3HW = torch.randn(batch, 3, 224, 224, device=device)

        def infer(net: nn.Module, x_N3HW: Tensor = x_N3HW) -> None:
            with torch.no_grad():
                net.eval()(x_N3HW)

        def train(net: nn.Module, x_N3HW: Tensor = x_N3HW) -> None:
            net.train().zero_grad()
            net(x_N3HW).square().mean().backward()

        for mode, run in (("inference", infer), ("training", train)):
            turns = max(4, 40 // batch)
            best_s = fastest_s({name: partial(run, net) for name, net in nets.items()}, turns, device)
            for name, took_s in best_s.items():
                overhead = took_s / best_s["resnet50"] - 1
                yield {"network": name, "mode": mode, "batch": batch, "time_ms": took_s * 1e3, "overhead": overhead}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def print_summary(rows: list[dict[str, Any]]) -> None:
    """One line a layer and mode, over all shapes."""
    print(f"{'layer':<18} {'mode':<10} {'x timm eca':>10} {'floors':>7} {'floors, maps above 1 MB':>24}")
    for name, mode in dict.fromkeys((row["layer"], row["mode"]) for row in rows):
        mine = [row for row in rows if (row["layer"], row["mode"]) == (name, mode)]
        large = [row["floors"] for row in mine if row["map_mib"] > 1]
        times = geometric_mean([row["timm_eca_times"] for row in mine])
        floors = geometric_mean([row["floors"] for row in mine])
        above = f"{geometric_mean(large):>24.2f}" if large else f"{'-':>24}"
        print(f"{name:<18} {mode:<10} {times:>10.2f} {floors:>7.2f} {above}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time attention layers against the memory floor.")
    parser.add_argument("--methods", nargs="*", default=["eca", "se"], help="Names of methods, or all.")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32], help="Images at once.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of the CPU.")
    parser.add_argument("--compiled", action="store_true", help="Run every layer through torch.compile.")
    parser.add_argument("--networks", action="store_true", help="Time whole networks instead of layers.")
    parser.add_argument("--json", type=Path, help="Write all rows here.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    methods = list(eca_hub.ATTENTIONS) if args.methods == ["all"] else args.methods
    if args.networks:
        rows = list(network_rows(args.batches, args.device))
        for row in rows:
            timing = f"{row['time_ms']:>9.1f} ms {row['overhead']:>+7.1%}"
            print(f"{row['network']:<14} {row['mode']:<10} {row['batch']:>3} {timing}")
    else:
        rows = list(gate_rows(args.batches, methods, args.device, args.compiled))
        print_summary(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
        print(f"{len(rows)} rows in {args.json}")


if __name__ == "__main__":
    main()
