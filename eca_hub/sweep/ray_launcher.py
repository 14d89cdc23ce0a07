"""Start the runs of a sweep on a Ray cluster.

Each run is a Ray task that reserves CPU cores, or a GPU where the cluster has any, and starts the same worker process
as on one machine. The folder of the sweep must be shared by all nodes, and eca-hub must be installed on each.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

from eca_hub.errors import InvalidUsage
from eca_hub.sweep.grid import SweepRun


class RayLauncher:
    """Start runs as Ray tasks.

    Args:
        address: The cluster, such as auto or ray://HOST:10001.
        num_cpus: Cores that a run reserves, and its number of threads.

    Raises:
        InvalidUsage: no cluster responds there.
    """

    def __init__(self, address: str, *, num_cpus: int = 1) -> None:
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidUsage(
                f"No Ray cluster responds at {address!r}: {reason}", hint="Start one: ray start --head"
            ) from None
        resources: dict[str, float] = ray.cluster_resources()
        num_gpus = 1 if resources.get("GPU") else 0
        self.num_jobs = max(1, int(resources["GPU"] if num_gpus else resources.get("CPU", 1) // num_cpus))
        self._num_cpus = num_cpus
        self._task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)(_run_worker)

    def start(self, run: SweepRun, run_dir: Path) -> "RayJob":
        """Submit one run; Ray queues it until a node has room, and starts it again if its node fails."""
        return RayJob(self._task.remote(str(run_dir.resolve()), list(run.arguments), str(Path.cwd()), self._num_cpus))


class RayJob:
    """A run that was submitted."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def poll(self) -> int | None:
        """Return its exit code, or None while it is queued or runs; 1 if its node was lost too often."""
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        """Cancel it; a run in progress saves a checkpoint."""
        ray.cancel(self._reference)


def _run_worker(run_dir: str, arguments: list[str], working_dir: str, num_threads: int) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    with Path(f"{run_dir}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "eca_hub.sweep.worker", run_dir, *arguments],
            cwd=working_dir,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:  # how Ray cancels a task
            process.terminate()
            return process.wait()
