"""The other processes of a run on this machine, which the first one starts: they end together, and in order.

Lightning kills all of them when one has ended with any code but 0: within five seconds, whether the first one is just
being stopped or not, and without a word. Written for lightning 2.6; knows nothing of training.
"""

import atexit
import os
import subprocess
import threading
import time

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from eca_hub.train.distributed.signals import PATIENCE_S, STANDARD_ERROR, STOPPED_CODES, StopWish
from eca_hub.train.errors import ProcessLost
from eca_hub.train.failures import TO_GO_ON

_LOOK_S = 0.2
_HEARING_S = 1.0
"""How long a signal may take to be heard. A process that waits for another one to begin is deaf to all of them."""
_LEAVING_S = 5.0
"""How long the others may take to end after the first."""


def end_together(trainer: Trainer, wish: StopWish) -> None:
    """Attend to the processes that this one will start, if it is the one that starts them.

    Args:
        trainer: Which has started none yet.
        wish: Tells whether this process was asked to stop.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = _Launcher(launcher, wish)


class _Launcher(_SubprocessScriptLauncher):
    def __init__(self, usual: _SubprocessScriptLauncher, wish: StopWish) -> None:
        super().__init__(usual.cluster_environment, usual.num_processes, usual.num_nodes)
        self._wish = wish
        self._siblings: list[subprocess.Popen[bytes]] = []

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        # What Lightning does not know of it does not kill.
        self._siblings, self.procs = self.procs, []
        atexit.register(self._leave_nobody)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process as well when another one has failed, and it does not notice by itself."""
        while not (codes := [each.returncode for each in self._siblings if each.poll()]):
            time.sleep(_LOOK_S)
        [code, *_] = codes
        was_asked = code in STOPPED_CODES
        time.sleep(_HEARING_S)
        is_deaf = was_asked and self._wish.number is None
        if not is_deaf:
            time.sleep(PATIENCE_S)
        for each in self._siblings:
            each.kill()
        if not was_asked:
            sentence = f"eca-hub: Another process of this run is gone, with code {code}. {TO_GO_ON}\n"
            os.write(STANDARD_ERROR, sentence.encode())
        os._exit(code if was_asked else ProcessLost.exit_code)

    def _leave_nobody(self) -> None:
        give_up_s = time.monotonic() + _LEAVING_S
        for each in self._siblings:
            try:
                each.wait(max(give_up_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                each.kill()
