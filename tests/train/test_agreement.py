"""What processes agree on: alone at once, together one step later, and nothing that was said is lost."""

import subprocess
import sys

import pytest

from eca_hub.train.distributed.consensus import Agreement

TOGETHER = """
import os, sys
import torch
from eca_hub.train.distributed.consensus import Agreement

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
agreement = Agreement(2)
heard = [agreement.hear(rank == 1, False)]
agreement.say(rank == 1, False)
heard.append(agreement.hear(False, False))
agreement.say(False, rank == 0)
heard.append(agreement.settle(False, False))
heard.append(agreement.settle(rank == 0, False))
print(heard)
torch.distributed.destroy_process_group()
"""


def test_alone_a_process_hears_itself_at_once() -> None:
    agreement = Agreement(1)
    agreement.say(True, True)
    assert agreement.hear(True, False) == [True, False]
    assert agreement.hear(False, False) == [False, False]
    assert agreement.settle(True) == [True]


@pytest.mark.slow
def test_two_processes_hear_a_step_later_what_either_has_said(tmp_path_factory: pytest.TempPathFactory) -> None:
    meeting = tmp_path_factory.mktemp("meeting") / "file"
    processes = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(rank), str(meeting)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [str([[False, False], [True, False], [False, False], [True, False]])] * 2
