"""`eca-hub sweep`: train every combination of a grid, some at a time, and collect the results."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.outputs import check_file, not_written, output_path
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage
from eca_hub.paths import expand_home


def main(argv: list[str]) -> int:
    """Run or continue a sweep; exit 0 only if every run has finished."""
    parser = CommandParser(
        "sweep",
        "Train every combination of a grid and collect the results in one file. The same command continues a sweep "
        "that was stopped or killed, also from its results file alone; finished runs are never repeated.",
    )
    parser.add_argument("-c", "--sweep", required=True, help="The sweep file: configs, options, grid, exclude.")
    parser.add_argument("--out", default="runs/sweep", help="Folder that holds one run folder a run.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time; they share the cores.")
    parser.add_argument("--results", help="Results, *.csv or *.parquet; results.csv in --out by default.")
    parser.add_argument("--ray", help="Address of a Ray cluster that shares --out, such as auto; runs go there.")
    parser.add_argument("--speeds", action="store_true", help="At the end, time the networks in turns: *_speeds.csv.")
    parser.add_argument("--baseline", help="Run folder of another sweep; --speeds times its network too, as the first.")
    parser.add_argument("--dry_run", action="store_true", help="List the runs and their state, and start none.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object at the end, or for --dry_run.")
    args = parser.read(argv)
    from eca_hub.hub.package import is_file
    from eca_hub.sweep.grid import read_sweep
    from eca_hub.sweep.queue import CONTINUES, Launcher, LocalLauncher, run_sweep
    from eca_hub.sweep.results import read_recorded
    from eca_hub.sweep.worker import is_finished

    if args.jobs < 1:
        raise InvalidUsage(f"--jobs is {args.jobs}; it must be 1 or more.")
    out_dir = output_path("out", args.out)
    results_file = out_dir / "results.csv" if args.results is None else output_path("results", args.results)
    if results_file.suffix not in (".csv", ".parquet"):
        raise InvalidUsage(f"--results is {str(results_file)!r}; its name must end in .csv or .parquet.")
    baseline = expand_home(args.baseline) if args.baseline else None
    if baseline is not None and not args.speeds:
        raise InvalidUsage("--baseline is a network to time.", hint="Give --speeds with it.")
    for name in ("config.yaml", "model/config.json"):
        if baseline is not None and not is_file(baseline / name):
            raise InvalidUsage(f"--baseline is {baseline}, which is no folder of a finished run: it has no {name}.")
    if baseline is not None:
        from eca_hub.sweep.speeds import read_run

        read_run(baseline)
    runs = read_sweep(expand_home(args.sweep))
    try:
        recorded = {row["run"] for row in read_recorded(runs, out_dir, results_file).results}
        states = {run.name: run.name in recorded or is_finished(out_dir / run.name) for run in runs}
    except OSError as error:
        raise InvalidUsage(f"{error.filename} cannot be read: {error.strerror}.") from None
    if args.dry_run:
        if args.json:
            print(json.dumps({"runs": [{"run": name, "finished": done} for name, done in states.items()]}))
        else:
            print("\n".join(f"{'finished' if done else 'to do':<9} {name}" for name, done in states.items()))
        return 0
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        results_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidUsage(f"{error.filename} cannot be made a folder: {error.strerror}.") from None
    check_file(results_file)
    if recorded:
        print(
            f"{len(recorded)} runs are in {results_file} and have no run folder; they count as finished.",
            file=sys.stderr,
        )
    for name in sorted({path.parent.name for path in out_dir.glob("*/result.json")} - {run.name for run in runs}):
        print(f"{out_dir / name} belongs to no run of {args.sweep} and is left out of the results.", file=sys.stderr)
    launcher: Launcher
    if args.ray:
        from eca_hub.sweep.ray_launcher import RayLauncher

        launcher = RayLauncher(args.ray)
    else:
        launcher = LocalLauncher(args.jobs)
    printer = _Printer(launcher.num_jobs)
    try:
        state = run_sweep(runs, out_dir, results_file, launcher=launcher, report=printer.show)
    except KeyboardInterrupt:
        print("Stopped. Runs in progress saved a checkpoint; the same command continues.", file=sys.stderr)
        raise
    except OSError as error:
        if error.filename is None:
            raise
        raise InvalidUsage(f"{error.filename} cannot be used: {error.strerror}.", hint=CONTINUES) from None
    finally:
        show_progress("")
    for name, reason in state.failed.items():
        print(f"{name} failed: {reason} Its log: {out_dir / name}.log", file=sys.stderr)
    num_left = state.num_runs - state.num_done - len(state.failed)
    if num_left:
        print(f"{num_left} runs were not started, because the first one failed.", file=sys.stderr)
    summary: dict[str, Any] = {
        "runs": state.num_runs,
        "finished": state.num_done,
        "failed": state.failed,
        "results": str(results_file),
    }
    text = json.dumps(summary) if args.json else f"{state.num_done} of {state.num_runs} runs finished: {results_file}"
    try:
        if args.speeds and state.num_done == state.num_runs:
            from eca_hub.sweep.speeds import network_folders, with_baseline

            networks, left_out = network_folders(runs, out_dir, recorded)
            if baseline is not None and networks:
                of_sweep, networks = networks, with_baseline(networks, runs, baseline)
                for folder in sorted(set(of_sweep.values()) - set(networks.values())):
                    print(
                        f"{baseline} is timed in place of {folder}: both have the same values of the grid; other "
                        "options are not compared.",
                        file=sys.stderr,
                    )
            _write_speeds(networks, left_out, results_file, num_jobs=args.jobs)
        elif args.speeds:
            print("The networks were not timed, because not all runs have finished.", file=sys.stderr)
    finally:
        # Last, because it fails where the terminal has been closed.
        print(text)
    return 0 if state.num_done == state.num_runs else 1


def _write_speeds(networks: Mapping[str, Path], left_out: Sequence[str], results_file: Path, *, num_jobs: int) -> None:
    import torch

    from eca_hub.allocator import keep_freed_memory
    from eca_hub.sweep.queue import threads_of_job
    from eca_hub.sweep.results import table_beside, write_table
    from eca_hub.sweep.speeds import measure_speeds

    if not networks:
        print("No network was timed, because no run has a folder here.", file=sys.stderr)
        return
    speeds_file = table_beside(results_file, "speeds")
    if left_out:
        kept = f" {speeds_file} stays as it is." if speeds_file.exists() else ""
        print(f"Not timed, because no run of it has a folder here: {', '.join(left_out)}.{kept}", file=sys.stderr)
        if kept:
            return
    # Both as in the runs.
    keep_freed_memory()
    num_threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of_job(num_jobs))
    try:
        rows = measure_speeds(
            networks, report=lambda turn, of: show_progress(f"timing {len(networks)} networks: turn {turn} of {of}")
        )
    finally:
        torch.set_num_threads(num_threads)
        show_progress("")
    try:
        write_table(rows, speeds_file)
    except OSError as error:
        raise not_written(speeds_file, error) from None
    print(f"{len(rows)} networks were timed: {speeds_file}", file=sys.stderr)


class _Printer:
    """Prints a line when a run ends; between them, a progress line on a terminal."""

    def __init__(self, num_jobs: int) -> None:
        self._num_jobs = num_jobs
        self._num_ended = -1

    def show(self, state: Any) -> None:
        left_s = state.left_s(self._num_jobs)
        left = f", {_format_s(left_s)} left" if left_s is not None else ""
        line = (
            f"{state.num_done} of {state.num_runs} runs finished, {len(state.running)} running, "
            f"{len(state.failed)} failed{left}"
        )
        num_ended = state.num_done + len(state.failed)
        if num_ended != self._num_ended:
            self._num_ended = num_ended
            show_progress("")
            print(line, file=sys.stderr)
        show_progress(f"{line}: {', '.join(state.running)}"[:200])


def _format_s(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
