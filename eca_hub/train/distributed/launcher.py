"""The other processes of a run on this machine, started by the first one: if one fails, all end, in order.

Lightning's launcher kills all of them within five seconds when one has ended with a code other than 0, without a
message, even while the first one is saving a checkpoint because of a signal.
"""

import atexit
import os
import subprocess
import threading
import time

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer

from eca_hub.train.distributed.signals import GRACE_S, SIGNAL_DELAY_S, STANDARD_ERROR, STOPPED_EXIT_CODES, StopRequest
from eca_hub.train.errors import RESUME_HINT, ProcessLost
from eca_hub.train.lightning_internals import SubprocessLauncher, set_launcher

_POLL_S = 0.2
_EXIT_S = 5.0
"""Time in which the other processes must end after the first one."""


def terminate_together(trainer: Trainer, request: StopRequest) -> None:
    """Use `GroupLauncher` if this process starts the others.

    Args:
        trainer: A trainer that has started none yet.
        request: The stop request of this process.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, SubprocessLauncher):
        set_launcher(trainer.strategy, GroupLauncher(launcher, request))


def end_while_connecting(trainer: Trainer, request: StopRequest) -> None:
    """Let a signal end this process while it waits for the other ones of the run to connect.

    Args:
        trainer: A trainer that has not connected yet.
        request: The stop request of this process.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or not isinstance(strategy.launcher, SubprocessLauncher | None):
        return
    connect = strategy.setup_environment

    def connect_or_end() -> None:
        with request.connecting():
            connect()

    strategy.setup_environment = connect_or_end  # type: ignore[method-assign]


def announce_nodes(trainer: Trainer) -> None:
    """Print what this process waits for, if it is one of several nodes and no launcher has started it.

    Args:
        trainer: A trainer that has started no processes yet.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes == 1 or not isinstance(environment, LightningEnvironment) or environment.local_rank():
        return
    print(
        f"--trainer.num_nodes is {trainer.num_nodes}, and neither torchrun nor srun has started this process: node "
        f"{environment.node_rank()} of 0 to {trainer.num_nodes - 1} waits until all nodes are connected to "
        f"{environment.main_address} port {environment.main_port}. Set MASTER_ADDR and MASTER_PORT, the same on all "
        "nodes, and NODE_RANK on each of them; torchrun and srun set them by themselves.",
        flush=True,
    )


def requeue_plugins() -> list[SLURMEnvironment]:
    """Return the plugin that turns off Lightning's own requeue under SLURM, whose checkpoints never end a run.

    `StopRequest` requeues the job instead, after a checkpoint that --resume continues from.
    """
    is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if is_slurm else []


class GroupLauncher(SubprocessLauncher):
    """Starts the other processes as Lightning does, and ends all of them in order when one fails.

    Args:
        usual: Lightning's own launcher.
        request: The stop request of this process.
    """

    def __init__(self, usual: SubprocessLauncher, request: StopRequest) -> None:
        super().__init__(usual.cluster_environment, usual.num_processes, usual.num_nodes)
        self._request = request

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        # Lightning's observer kills the processes in `procs`.
        self._request.children, self.procs = self.procs, []
        atexit.register(self._kill_remaining)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process too when another one has failed and this one hangs in a collective operation."""
        children = self._request.children
        while not (codes := [each.returncode for each in children if each.poll()]):
            time.sleep(_POLL_S)
        [code, *_] = codes
        was_requested = code in STOPPED_EXIT_CODES
        time.sleep(SIGNAL_DELAY_S)
        is_blocked = was_requested and not self._request.is_requested
        if not is_blocked:
            time.sleep(GRACE_S)
        for each in children:
            each.kill()
        if not was_requested:
            sentence = f"eca-hub: Another process of this run ended with code {code}. {RESUME_HINT}\n"
            os.write(STANDARD_ERROR, sentence.encode())
        # The main thread is blocked in C++ in a collective operation that no exception reaches.
        os._exit(code if was_requested else ProcessLost.exit_code)

    def _kill_remaining(self) -> None:
        deadline_s = time.monotonic() + _EXIT_S
        for each in self._request.children:
            try:
                each.wait(max(deadline_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                each.kill()
