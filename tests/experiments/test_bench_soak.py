"""What a soak reports about its samples, and a short real soak."""

from pathlib import Path

import pytest

from experiments.bench.soak import Sample, growth_of, main, slope_of


def samples(*memory_mib: float) -> list[Sample]:
    return [Sample(1000 * index, memory, 20, 10) for index, memory in enumerate(memory_mib)]


def test_memory_that_rises_once_and_stays_does_not_grow() -> None:
    flat = samples(100, *[300] * 20)
    assert growth_of(flat) == 0
    assert slope_of(flat) == 0


def test_memory_that_rises_with_each_request_grows() -> None:
    rising = samples(*range(100, 200, 5), 195)
    assert slope_of(rising) == pytest.approx(5)
    assert growth_of(rising) > 0.3


@pytest.mark.slow
def test_a_minute_of_mixed_clients_leaks_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["60"]) == 0, capsys.readouterr().out
