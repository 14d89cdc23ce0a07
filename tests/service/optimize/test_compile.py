"""Compiled networks: what is needed, and the same outputs after a restart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eca_service.errors import BadSetting
from eca_service.optimize.compile import check_compiler, next_size

_PROGRAM = """
import json
from torch._dynamo.utils import counters
from eca_service.optimize.optimize import optimize_model
from tests.service.optimize.test_optimize import classifier
network = optimize_model(classifier(), "fp32", compiled=True)
print(json.dumps([network.parity.max_difference, counters["inductor"]["fxgraph_cache_hit"]]))
"""


def test_a_batch_is_filled_up_to_a_power_of_two() -> None:
    assert [next_size(number) for number in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(BadSetting, match="needs a C\\+\\+ compiler"):
        check_compiler("cpu")
    check_compiler("cuda")


@pytest.mark.slow
def test_a_compiled_network_has_the_same_outputs_and_is_not_compiled_again(tmp_path: Path) -> None:
    def start() -> list[float]:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, check=True, capture_output=True, timeout=280
        )
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return found

    first, second = start(), start()
    assert first[0] < 1e-4
    assert first[1] == 0
    assert second[0] < 1e-4
    assert second[1] >= 1
