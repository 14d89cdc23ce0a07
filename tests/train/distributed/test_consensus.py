"""Flags of several ranks: seen one step later, or at once when decided; none is lost."""

import subprocess
import sys

import pytest

from eca_hub.train.distributed.consensus import StopConsensus

TOGETHER = """
import os, sys
import torch
from eca_hub.train.distributed.consensus import StopConsensus

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
consensus = StopConsensus(2)
polled = [consensus.poll(rank == 1, False)]
consensus.post(rank == 1, False)
polled.append(consensus.poll(False, False))
consensus.post(False, rank == 0)
polled.append(consensus.decide(False, False))
polled.append(consensus.decide(rank == 0, False))
print(polled)
torch.distributed.destroy_process_group()
"""


def test_a_single_process_sees_its_own_flags_at_once() -> None:
    consensus = StopConsensus(1)
    consensus.post(True, True)
    assert consensus.poll(True, False) == [True, False]
    assert consensus.poll(False, False) == [False, False]
    assert consensus.decide(True) == [True]


@pytest.mark.slow
def test_two_processes_see_the_flags_of_both_one_step_later(tmp_path_factory: pytest.TempPathFactory) -> None:
    meeting = tmp_path_factory.mktemp("meeting") / "file"
    processes = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(rank), str(meeting)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == [str([[False, False], [True, False], [False, False], [True, False]])] * 2
