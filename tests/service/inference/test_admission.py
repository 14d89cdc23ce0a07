"""What is admitted, how refusals are paced and when clients retry, with times that the test gives."""

import pytest

from eca_service.errors import Overloaded
from eca_service.inference.admission import Admission


def admission(*, s_per_item: float = 0.1, max_items: int = 1000) -> Admission:
    return Admission(num_runners=2, max_batch=4, max_items=max_items, max_queue_delay_s=1.0, s_per_item=s_per_item)


def full(*, s_per_item: float = 0.1) -> Admission:
    """Everything in flight waits, so that the next item is refused."""
    admitted = admission(s_per_item=s_per_item)
    admitted.num_items = 1 + max(round(2 / s_per_item), 2 * 4 * 2)
    return admitted


def refusal(admitted: Admission, now_s: float) -> Overloaded:
    with pytest.raises(Overloaded) as refused:
        admitted.check(1, now_s)
    return refused.value


@pytest.mark.parametrize(("s_per_item", "num_admitted"), [(0.001, 1000), (0.02, 101), (0.1, 21), (0.2, 11), (2.0, 4)])
def test_what_is_admitted_takes_about_a_second_on_any_machine(s_per_item: float, num_admitted: int) -> None:
    admitted = admission(s_per_item=s_per_item)
    for _ in range(num_admitted):
        admitted.check(1, 0.0)
        admitted.num_items += 1
    refusal(admitted, 0.0)


@pytest.mark.parametrize(("s_per_item", "max_batch"), [(0.0, 4), (0.125, 4), (0.126, 3), (0.2, 2), (0.3, 1), (9.0, 1)])
def test_a_batch_takes_half_a_second_at_most_unless_one_item_does_not(s_per_item: float, max_batch: int) -> None:
    assert admission(s_per_item=s_per_item).max_batch == max_batch


def test_the_estimate_follows_a_machine_that_becomes_slow_within_seconds_and_one_that_becomes_fast() -> None:
    admitted = admission(s_per_item=0.02)
    admitted.num_items = 2
    took_s = 0.0
    while admitted.expected_wait_s < 0.9:
        admitted.record(1, 1.0)
        took_s += 1.0
    assert took_s <= 6
    while admitted.expected_wait_s > 0.03:
        admitted.record(4, 0.08)
        took_s += 0.08
    assert took_s <= 12


def test_refusals_are_sent_at_once_at_five_times_the_load_that_the_runners_can_serve() -> None:
    admitted = full(s_per_item=0.1)
    # Two runners do 20 items a second: of 100 requests, 80 are refused.
    assert {refusal(admitted, number / 80).response_delay_s for number in range(2000)} == {0.0}


def test_beyond_that_refusals_are_delayed_by_two_seconds_at_most() -> None:
    admitted = full(s_per_item=0.1)
    delays_s = [refusal(admitted, 0.0).response_delay_s for _ in range(1000)]
    assert delays_s[:100] == pytest.approx([0.0] * 100), "a burst of a second"
    assert delays_s[100:300] == pytest.approx([0.01 * number for number in range(1, 201)]), "then a hundred a second"
    assert max(delays_s) == 2.0
    assert refusal(admitted, 10.0).response_delay_s == 0.0


def test_before_the_first_batch_no_refusal_is_delayed() -> None:
    admitted = admission(s_per_item=0.0, max_items=1)
    admitted.num_items = 1
    assert {refusal(admitted, 0.0).response_delay_s for _ in range(1000)} == {0.0}


def test_clients_that_are_refused_together_are_told_to_retry_at_different_times() -> None:
    admitted = full(s_per_item=2.0)
    wait_s = admitted.expected_wait_s
    retry_s = [refusal(admitted, 0.0).retry_after_s for _ in range(1000)]
    counts = [retry_s.count(second) for second in range(round(wait_s) + 1, round(3 * wait_s) + 1)]
    assert sum(counts) == 1000
    assert max(counts) <= min(counts) + 2
