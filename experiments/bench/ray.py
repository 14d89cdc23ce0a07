"""What Ray Serve costs: the service as one replica on Ray and as `eca-hub serve`, on one node and in one run.

    python -m experiments.bench.ray
    python -m experiments.bench.ray --quick

Both are loaded in closed loop with the same photo-like JPEG, with a network and around none, which leaves HTTP and the
batcher; compare the rows of one table. Ray's processes count with all their memory and processor time: proxy,
controller, raylet, GCS and replica. A window in which other processes took more than 5 % of the processors is measured
again. `--node FOLDER` is the server on Ray; `--node none` has no network.
"""

import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from eca_hub.commandline import CommandParser
from experiments.bench.noop_service import SETTINGS, open_noop_app
from experiments.bench.server_process import Row, Served, started
from experiments.bench.service import log, make_image, make_package
from experiments.program import run_program


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench ray", "Measure the service on Ray Serve beside eca-hub serve.")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long each figure takes.")
    parser.add_argument("--clients", type=list[int], default=[1, 8, 32], help="Numbers of clients: [1, 32].")
    parser.add_argument("--architecture", default="ecaresnet26t", help="The network, with random weights.")
    parser.add_argument("--quick", action="store_true", help="One-second windows at 1 and 8 clients: does it run?")
    parser.add_argument("--node", default="", help="Serve a package on Ray, for this bench.")
    args = parser.read(argv)
    if args.node:
        return serve_on_ray(args.node)
    if args.quick:
        args.seconds, args.clients = 1.0, [1, 8]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        make_package(args.architecture, folder)
        rows = [row for served in servers(str(folder)) for row in measure(served, args)]
    print_table(rows)
    return 0


def servers(folder: str) -> list[Served]:
    """Every server, those to compare side by side."""
    image, node = make_image(), ["-m", "experiments.bench.ray", "--node"]
    plain = ["-m", "eca_hub", "serve", "--model", folder, "--port", "0"]
    return [
        Served("eca-hub serve, no network", ["-m", "experiments.bench.noop_service"], "/v1/classify", image),
        Served("Ray, no network", [*node, "none"], "/v1/classify", image),
        Served("eca-hub serve", plain, "/v1/classify", image),
        Served("Ray", [*node, folder], "/v1/classify", image),
    ]


def measure(served: Served, args: Any) -> list[Row]:
    """Load one server with each number of clients."""
    with started(served) as server:
        rows = []
        for clients in args.clients:
            log(f"{served.name}, {clients} clients ...")
            row = server.load(clients, 0.0, args.seconds)
            log(f"  {row.per_s:.0f} requests/s, p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms")
            rows.append(row)
        return rows


def print_table(rows: list[Row]) -> None:
    """Print the rows, those to compare one below the other."""
    print("| server | clients | requests/s | p50 ms | p99 ms | CPU ms a request | MiB | refused | lost | others' CPU |")
    print("| --- " * 10 + "|")
    for row in sorted(rows, key=lambda row: ("no network" in row.server, row.clients)):
        figures = (f"{row.per_s:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.server_cpu_ms:.2f}")
        rest = (f"{row.memory_mib:.0f}", str(row.num_refused), str(row.num_without_response), f"{row.foreign:.0%}")
        print("| " + " | ".join([row.server, str(row.clients), *figures, *rest]) + " |")


def serve_on_ray(folder: str) -> int:
    """Serve on Ray with one replica that has all cores, until a signal ends the process; print `serving on URL`."""
    import ray
    from ray import serve

    from eca_service.ray_app import deployment_for, deployment_of, read_settings

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    num_cores = len(os.sched_getaffinity(0))
    # As service/deploy/ray/eca-hub.yaml says; Ray's processes inherit it.
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "eca_service.ray_proxy:middlewares"
    # Controller and proxy reserve no core.
    ray.init(num_cpus=num_cores, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    if folder == "none":
        deployment = deployment_of(open_noop_app, SETTINGS.max_inflight_images)
    else:
        deployment = deployment_for(read_settings({"model": folder, "insecure": True}))
    serve.run(deployment.options(num_replicas=1, ray_actor_options={"num_cpus": num_cores}).bind())
    print(f"serving on http://127.0.0.1:{port}", flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    run_program(main)
