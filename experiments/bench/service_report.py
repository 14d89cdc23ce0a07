"""Table and plot of the figures that experiments/bench/service.py keeps in its JSON file."""

from collections.abc import Iterator
from typing import Any

_HEAD = (
    f"{'server':<24}{'format':>7}{'clients':>8}{'per s':>9}{'of limit':>9}{'p50 ms':>9}{'p99 ms':>9}{'refused':>8}"
    f"{'lost':>6}{'MiB':>7}{'start s':>8}{'cpu ms':>7}{'foreign':>8}"
)


def print_report(saved_results: dict[str, Any]) -> None:
    """Print every part that was measured."""
    http_ms = http_ms_of(saved_results)
    for part, results in saved_results.items():
        print(f"\n{part}, {results['when']}, {results['cores']} cores")
        engines = [("plain engine", each) for each in results["limit"].items()]
        engines += [("our engine", each) for each in results.get("ours", {}).items()]
        for name, (precision, figures) in engines:
            text = "  ".join(f"{key} {value:.1f}" for key, value in figures.items() if isinstance(value, float))
            limit = pipeline_limit(figures, http_ms, results["cores"])
            print(f"  {name} in {precision} ({figures['format']}), images/s: {text}  pipeline {limit:.1f}")
        if "rows" in results:
            print(_HEAD)
        for row, share in rows_with_share(results, http_ms):
            print(f"{row['server']:<24}{row['precision']:>7}{row['clients'] or 'open':>8}{row['per_s']:>9.1f}", end="")
            print(f"{'' if share is None else f'{share:.2f}':>9}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}", end="")
            print(f"{row['num_refused']:>8}{row['num_without_response']:>6}{row['memory_mib']:>7.0f}", end="")
            print(f"{row['start_s']:>8.1f}{row['server_cpu_ms']:>7.2f}{row['foreign']:>8.0%}")
        if "start" in results:
            start = results["start"]
            print(f"  first response after {start['ours_s']:.2f} s; importing torch and timm and loading the weights:")
            for name, library in (("plain_s", "with stock timm"), ("floor_s", "with eca_hub")):
                if name in start:
                    print(f"    {library:<26} {start[name]:.2f} s, ratio {start['ours_s'] / start[name]:.2f}")
        for name, figures in results.get("runtimes", {}).items():
            print(f"  {name:<24}" + "  ".join(f"{size} {value:.1f}" for size, value in figures.items()))


def http_ms_of(saved_results: dict[str, Any]) -> float:
    """Processor time of one request around no network; 0 where that part was not measured."""
    rows = saved_results.get("noop", {}).get("rows", [])
    return float(rows[0]["server_cpu_ms"]) if rows else 0.0


def pipeline_limit(figures: dict[str, Any], http_ms: float, cores: int) -> float:
    """Images a second if nothing but the network, decoding and HTTP took time."""
    return float(cores * 1000 / (cores * 1000 / figures["with_decoding"] + http_ms))


def fastest_of(limit: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of the plain engine in the faster number format: a processor that emulates bf16 is slow in it."""
    return max(limit.values(), key=lambda figures: figures["with_decoding"])


def limit_of(precision: str, limit: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The figures of the plain engine that a row is compared with."""
    return fastest_of(limit) if precision == "auto" else limit.get(precision)


def rows_with_share(results: dict[str, Any], http_ms: float) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Each row with its share of the limit of the pipeline in its number format, where it has one."""
    for row in results.get("rows", []):
        figures = limit_of(row["precision"], results["limit"])
        share = row["per_s"] / pipeline_limit(figures, http_ms, results["cores"]) if figures else None
        yield row, share


def draw(saved_results: dict[str, Any], file: str) -> None:
    """Plot the share of the pipeline's limit over the number of clients, one line for each server."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("matplotlib is not installed, so nothing is drawn: pip install 'eca-hub[train]'")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    lines: dict[str, list[tuple[int, float]]] = {}
    http_ms = http_ms_of(saved_results)
    for results in saved_results.values():
        for row, share in rows_with_share(results, http_ms):
            if share is not None and row["clients"]:
                lines.setdefault(f"{row['server']}, {row['precision']}", []).append((row["clients"], share))
    for name, points in lines.items():
        style = "-" if name.startswith("ours") else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=name)
    axes.axhline(1.0, color="gray", linewidth=1)
    axes.set(xlabel="clients", ylabel="share of the pipeline's limit", xscale="log", ylim=0)
    ticks = sorted({clients for points in lines.values() for clients, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)
