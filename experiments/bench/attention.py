"""Time ECA, other attention methods and timm's layers on the maps of ResNet-50, and whole networks with and without.

    python -m experiments.bench.attention --methods eca          gates and networks, with the aims: under 4 minutes
    python -m experiments.bench.attention --quick                half a minute, to see that it runs
    python -m experiments.bench.attention --methods all          every method of eca_hub
    python -m experiments.bench.attention --only networks        ECA-ResNet-50 against ResNet-50
    python -m experiments.bench.attention --only gates --compiled --device cuda --json rows.json

The layers run in turns (A, B, C, A, B, C, ...). For a gate the fastest of many turns counts, so that other load on the
machine affects all alike; for a network the median over the turns of the ratio to the network without attention. Each
run gets a map that was just written, as the norm before it does in a network, outside the measured time. The floor is
one copy and one sum of the map, measured in the same turns: the cost of reading it twice and writing it once to a new
buffer. `EcaModule / floor` is therefore about the best ratio to timm's layer where memory bandwidth is the limit.

ECA's blocks end in one kernel that takes the last batch norm, the shortcut and the ReLU too, while the blocks of the
network without attention run torch's operations one by one: the overhead of a network is that of the whole block, and
may be negative. `--separate-norms` times the blocks with the norm as an operation of its own.

On a GPU each row has the time that a roofline predicts, from the clocks and the width that the driver reports: the
visits of a fused kernel to the map at the bandwidth of the memory, and the operations of a network at the float32 rate
without tensor cores.

The gates run with the default allocator. The networks run with freed memory kept, as in `eca-hub fit` and the service;
otherwise the time in which the system hands out the same pages again would be counted as attention's.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from timm.layers.eca import EcaModule
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

import eca_hub
from eca_hub.allocator import keep_freed_memory
from eca_hub.attention.cpu_kernel import dispatch, fused

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
"""Channels and side of the maps that attention rescales in ResNet-50, for an image of 224 px."""
OURS, TIMM = "eca", "timm EcaModule"
OPEN_WEIGHT = 20.0
"""Gives gates close to 1: a map overwritten by ever smaller numbers would end in denormals."""

NUM_VISITS = {"inference": 3, "training": 7}
"""Times that a fused kernel reads or writes a map larger than the caches: x, x, y; and in backward dy, x, dy, dx."""

Row = dict[str, Any]


class Roofline(NamedTuple):
    """What a GPU can do at most."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def of(cls, device: str) -> "Roofline | None":
        """Compute it from the clocks of the first GPU; None for a processor."""
        if device != "cuda":
            return None
        gpu = torch.cuda.get_device_properties(0)
        num_lanes = 64 if (gpu.major, gpu.minor) in ((7, 0), (7, 5), (8, 0)) else 128
        # Clocks are in kHz; memory transfers twice a clock, and a lane multiplies and adds in one.
        return cls(
            bytes_per_s=2e3 * gpu.memory_clock_rate * gpu.memory_bus_width / 8,
            flops_per_s=2e3 * gpu.clock_rate * gpu.multi_processor_count * num_lanes,
        )


class Shape(NamedTuple):
    """One map."""

    memory_format: str
    batch: int
    channels: int
    side_px: int

    @property
    def num_elements(self) -> int:
        return self.batch * self.channels * self.side_px**2

    @property
    def mib(self) -> float:
        return self.num_elements * 4 / 2**20


class Official(nn.Module):
    """The layer of the authors' repository: adaptive pooling, two transpositions, expanded product."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_hub.kernel_size_for(channels)
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_NC1 = self.pool(x_NCHW).squeeze(-1)
        gate_NC11 = self.conv(mean_NC1.transpose(1, 2)).transpose(1, 2).sigmoid().unsqueeze(-1)
        y_NCHW: Tensor = x_NCHW * gate_NC11.expand_as(x_NCHW)
        return y_NCHW


def layers_for(channels: int, methods: list[str], compiled: bool) -> dict[str, nn.Module]:
    """Create the layers for maps of so many channels."""
    layers = {
        OURS: eca_hub.ECA(channels),
        TIMM: EcaModule(channels),
        "official ECA": Official(channels),
        "timm SEModule": SEModule(channels),
        **{name: eca_hub.ATTENTIONS[name](channels) for name in methods if name != "eca"},
    }
    for name in (OURS, TIMM, "official ECA"):
        nn.init.constant_(next(layers[name].parameters()), OPEN_WEIGHT)
    return {name: torch.compile(layer) if compiled else layer for name, layer in layers.items()}  # type: ignore[misc]


def in_turns(
    runs: dict[str, Callable[[], object]], num_turns: int, device: str, prepare: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Run functions in turns, two of them to warm up; return the seconds of each."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times_s: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(num_turns + 2):
        for name, run in runs.items():
            if prepare:
                prepare()
            wait()
            start_s = time.perf_counter()
            run()
            wait()
            if turn >= 2:
                times_s[name].append(time.perf_counter() - start_s)
    return times_s


def gate_rows(shapes: Iterable[Shape], args: argparse.Namespace) -> Iterator[Row]:
    """Time every layer on every map, forward without gradients and forward with backward."""
    roofline = Roofline.of(args.device)
    for shape in shapes:
        written_NCHW = torch.rand(shape.batch, shape.channels, shape.side_px, shape.side_px, device=args.device) + 0.5
        written_NCHW = written_NCHW.contiguous(memory_format=FORMATS[shape.memory_format])
        # Otherwise the compiler stops at its limit of recompilations, and the later shapes run in eager mode.
        torch.compiler.reset()
        layers = layers_for(shape.channels, args.methods, args.compiled)
        layers = {name: layer.to(args.device).eval() for name, layer in layers.items()}
        num_turns = max(4, min(60, args.budget // (shape.num_elements * len(layers))))
        for mode in ("inference", "training"):
            x_NCHW = written_NCHW.clone().requires_grad_(mode == "training")
            runs = _runs(layers, x_NCHW, mode)
            times_s = in_turns(runs, num_turns, args.device, partial(_write, x_NCHW, written_NCHW))
            best_s = {name: min(values) for name, values in times_s.items()}
            floor_s = best_s.pop("floor")
            for name, took_s in best_s.items():
                yield {
                    "layer": name,
                    "mode": mode,
                    **shape._asdict(),
                    "map_mib": shape.mib,
                    "time_us": took_s * 1e6,
                    "floors": took_s / floor_s,
                    "timm_eca_times": best_s[TIMM] / took_s,
                    "roofline_us": roofline and NUM_VISITS[mode] * shape.mib * 2**20 / roofline.bytes_per_s * 1e6,
                }


@torch.no_grad()
def _write(x_NCHW: Tensor, written_NCHW: Tensor) -> None:
    x_NCHW.copy_(written_NCHW)
    x_NCHW.grad = None


def _runs(layers: dict[str, nn.Module], x_NCHW: Tensor, mode: str) -> dict[str, Callable[[], object]]:
    """Set up what runs in turns; the floor in training is that of inference."""
    buffer_NCHW, dy_NCHW = torch.empty_like(x_NCHW).detach(), torch.ones_like(x_NCHW).detach()

    def floor() -> None:
        with torch.no_grad():
            buffer_NCHW.copy_(x_NCHW)
            x_NCHW.sum()

    def run(layer: nn.Module) -> None:
        if mode == "training":
            layer(x_NCHW).backward(dy_NCHW)
        else:
            with torch.no_grad():
                layer(x_NCHW)

    return {"floor": floor, **{name: partial(run, layer) for name, layer in layers.items()}}


def network_rows(cases: Iterable[tuple[str, int]], args: argparse.Namespace) -> Iterator[Row]:
    """Time networks with attention against ResNet-50 without: inference, and a training step without the optimizer."""
    keep_freed_memory()
    names = ["resnet50", *(f"{method}_resnet50" for method in args.methods)]
    nets = {name: eca_hub.create_model(name).to(args.device) for name in names}
    if args.separate_norms:
        fused.takes_norms = False
    roofline = Roofline.of(args.device)
    num_macs = {name: eca_hub.count_complexity(net).multiply_adds for name, net in nets.items()} if roofline else {}
    for mode, batch in cases:
        x_N3HW = torch.randn(batch, 3, 224, 224, device=args.device)

        def run(net: nn.Module, x_N3HW: Tensor = x_N3HW, is_training: bool = mode == "training") -> None:
            net.train(is_training).zero_grad()
            with nullcontext() if is_training else torch.no_grad():
                logits_NK = net(x_N3HW)
            if is_training:
                logits_NK.square().mean().backward()

        num_turns = 3 if args.quick else max(16, 120 // batch) if mode == "inference" else max(12, 40 // batch)
        times_s = in_turns({name: partial(run, net) for name, net in nets.items()}, num_turns, args.device)
        for name, values in times_s.items():
            ratios = [took_s / bare_s for took_s, bare_s in zip(values, times_s["resnet50"], strict=True)]
            yield {
                "network": name,
                "mode": mode,
                "batch": batch,
                "time_ms": min(values) * 1e3,
                "overhead": statistics.median(ratios) - 1,
                # Backward takes as many operations for the maps and as many for the weights.
                "roofline_ms": roofline
                and num_macs[name] * batch * (6 if mode == "training" else 2) / roofline.flops_per_s * 1e3,
            }


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def print_shapes(rows: list[Row]) -> None:
    """Print one line a map: the times of timm's layer and of ours, by the floor."""
    row_of = {(row["layer"], row["mode"], _shape_of(row)): row for row in rows}
    print(f"{'':<30} {'inference':>31}   {'training':>31}")
    heads = f"{'EcaModule':>10}{'ours':>8}{'EcaModule':>13}\n"
    units = f"{'/ floor':>10}{'/ floor':>8}{'/ ours':>13}"
    print(f"{'':<30} {heads.rstrip()}   {heads.rstrip()}\n{'map':<22} {'MiB':>7} {units}   {units}")
    for shape in dict.fromkeys(_shape_of(row) for row in rows):
        line = f"{shape.memory_format[:10]:<10} {shape.batch:>2} x {shape.channels:<5} {shape.mib:>8.1f}"
        for mode in ("inference", "training"):
            ours, timms = row_of[OURS, mode, shape], row_of[TIMM, mode, shape]
            line += f" {timms['floors']:>10.2f}{ours['floors']:>8.2f}{ours['timm_eca_times']:>13.2f}  "
            if ours["roofline_us"]:
                line += f" ours {ours['time_us']:.0f} us, roofline {ours['roofline_us']:.0f} us  "
        print(line)


def _shape_of(row: Row) -> Shape:
    return Shape(*(row[field] for field in Shape._fields))


def print_layers(rows: list[Row]) -> None:
    """Print one line a layer and mode, over all shapes."""
    print(f"\n{'layer':<18} {'mode':<10} {'EcaModule / it':>14} {'floors':>7} {'floors, maps above 1 MiB':>25}")
    for name, mode in dict.fromkeys((row["layer"], row["mode"]) for row in rows):
        layer_rows = _of(rows, name, mode)
        large = [row["floors"] for row in layer_rows if row["map_mib"] > 1]
        above = f"{geometric_mean(large):>25.2f}" if large else f"{'-':>25}"
        times, floors = (geometric_mean(row[key] for row in layer_rows) for key in ("timm_eca_times", "floors"))
        print(f"{name:<18} {mode:<10} {times:>14.2f} {floors:>7.2f} {above}")


def _of(rows: list[Row], layer: str, mode: str) -> list[Row]:
    return [row for row in rows if (row["layer"], row["mode"]) == (layer, mode)]


def print_networks(rows: list[Row]) -> None:
    """Print one line a network, mode and batch."""
    print(f"\n{'network':<18} {'mode':<10} {'batch':>5} {'fastest':>12} {'over resnet50':>14}")
    for row in rows:
        timing = f"{row['time_ms']:>9.1f} ms {row['overhead']:>+14.1%}"
        if row["roofline_ms"]:
            timing += f"   roofline {row['roofline_ms']:.1f} ms"
        print(f"{row['network']:<18} {row['mode']:<10} {row['batch']:>5} {timing}")


def aims(gates: list[Row], networks: list[Row]) -> list[Row]:
    """Compare the measured figures with the aims."""
    reached: list[Row] = []

    def note(aim: str, measured: float, least: float | None = None, most: float | None = None) -> None:
        is_met = measured >= least if least is not None else measured <= (most or 0)
        reached.append({"aim": aim, "measured": measured, "least": least, "most": most, "met": is_met})

    if gates:
        for mode, least in (("inference", 1.8), ("training", 1.1)):
            note(
                f"{mode}, EcaModule / ours", geometric_mean(r["timm_eca_times"] for r in _of(gates, OURS, mode)), least
            )
        large = [row["floors"] for row in _of(gates, OURS, "inference") if row["map_mib"] > 1]
        if large:
            note("inference, floors on maps above 1 MiB", geometric_mean(large), most=1.3)
    for row in networks:
        if row["network"] == "eca_resnet50":
            most = 0.0 if row["mode"] == "inference" else 0.02
            note(f"network overhead, {row['mode']}, batch {row['batch']}", row["overhead"], most=most)
    return reached


def print_aims(reached: list[Row]) -> None:
    print(f"\n{'aim':<42} {'measured':>9} {'wanted':>9}")
    for row in reached:
        bound, sign = (row["most"], "<=") if row["least"] is None else (row["least"], ">=")
        style = ".1%" if "overhead" in row["aim"] else ".2f"
        measured, wanted = f"{row['measured']:{style}}", f"{sign} {bound:{style}}"
        print(f"{row['aim']:<42} {measured:>9} {wanted:>9}  {'met' if row['met'] else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time attention layers against the memory floor, and whole networks.")
    parser.add_argument("--methods", nargs="*", default=["eca", "se"], help="Names of methods, or all.")
    parser.add_argument("--only", choices=["gates", "networks"], help="Leave out the other half.")
    parser.add_argument("--batches", nargs="*", type=int, help="Images at once, for the gates: 1 8 32.")
    parser.add_argument("--network-batches", nargs="*", type=int, help="The same for the networks: 1 8.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="Threads of the CPU.")
    parser.add_argument("--triton", action="store_true", help="Let ECA run its Triton kernel, with --device cuda.")
    parser.add_argument("--compiled", action="store_true", help="Run every layer, not the networks, by torch.compile.")
    parser.add_argument("--separate-norms", action="store_true", help="Keep the last norm of ECA's blocks separate.")
    parser.add_argument("--quick", action="store_true", help="Few turns, batch 1 alone.")
    parser.add_argument("--json", type=Path, help="Write all rows and the aims here.")
    args = parser.parse_args()
    if args.methods == ["all"]:
        args.methods = list(eca_hub.ATTENTIONS)
    args.batches = args.batches or ([1] if args.quick else [1, 8, 32])
    args.network_batches = args.network_batches or ([1] if args.quick else [1, 8])
    args.budget = 20_000_000 if args.quick else 400_000_000  # elements that all turns on one map may touch
    torch.set_num_threads(args.threads)
    dispatch.use_triton = args.triton
    console = Console(stderr=True)
    how = "one compiled kernel" if fused.is_built else "operations of torch: no kernel was compiled"
    print(f"On the CPU, ECA runs as {how}.")
    gates: list[Row] = []
    networks: list[Row] = []
    if args.only != "networks":
        shapes = [Shape(layout, batch, *stage) for layout in FORMATS for batch in args.batches for stage in STAGES]
        gates = list(gate_rows(track(shapes, "gates", console=console), args))
        print_shapes(gates)
        print_layers(gates)
    if args.only != "gates":
        cases = [(mode, batch) for batch in args.network_batches for mode in ("inference", "training")]
        networks = list(network_rows(track(cases, "networks", console=console), args))
        print_networks(networks)
    reached = aims(gates, networks)
    print_aims(reached)
    if args.json:
        args.json.write_text(json.dumps({"gates": gates, "networks": networks, "aims": reached}, indent=1))
        print(f"\n{len(gates) + len(networks)} rows in {args.json}")


if __name__ == "__main__":
    main()
