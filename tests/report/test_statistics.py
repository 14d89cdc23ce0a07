"""Statistics of comparisons, against scipy and against values worked out by hand."""

import math
import random

import numpy as np
import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.report.statistics import compare, holm, permutation_p, smallest_detectable_difference, summarize

A, B = [3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 2.5, 3.5, 0.5]


def difference(
    a: "np.ndarray[tuple[int], np.dtype[np.float64]]", b: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> float:
    return float(np.mean(a) - np.mean(b))


def test_the_p_value_is_that_of_scipys_exact_permutation_test() -> None:
    from scipy import stats

    greater = stats.permutation_test((A, B), difference, n_resamples=np.inf, alternative="greater", vectorized=False)
    assert permutation_p(A, B, alternative="greater") == pytest.approx(greater.pvalue)
    # Of absolute differences; scipy's own two-sided p-value is twice that of the smaller tail.
    both = stats.permutation_test(
        (A, B), lambda a, b: abs(difference(a, b)), n_resamples=np.inf, alternative="greater", vectorized=False
    )
    assert permutation_p(A, B, alternative="two-sided") == pytest.approx(both.pvalue)


def test_two_groups_that_do_not_overlap_get_the_smallest_p_value_there_is() -> None:
    assert permutation_p([4, 5, 6], [1, 2, 3], alternative="two-sided") == 2 / math.comb(6, 3)
    assert permutation_p([4, 5, 6], [1, 2, 3], alternative="greater") == 1 / math.comb(6, 3)
    assert permutation_p([1, 2, 3], [4, 5, 6], alternative="greater") == 1.0


def test_equal_groups_have_a_p_value_of_one_and_ties_count() -> None:
    assert permutation_p([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], alternative="two-sided") == 1.0


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_is_students() -> None:
    from scipy import stats

    summary = summarize([1.0, 2.0, 3.0, 4.0])
    low, high = stats.t.interval(0.95, 3, loc=2.5, scale=stats.sem([1.0, 2.0, 3.0, 4.0]))
    assert (summary.low, summary.high) == pytest.approx((low, high))
    assert math.isnan(summarize([1.0]).low)


@pytest.mark.parametrize(("n", "expected"), [(3, 0.77), (5, 0.51), (8, 0.38), (10, 0.33)])
def test_the_smallest_detectable_difference_at_a_deviation_of_a_quarter(n: int, expected: float) -> None:
    # Values with a standard deviation of exactly 0.25.
    values = np.linspace(-1, 1, n)
    values *= 0.25 / values.std(ddof=1)
    assert smallest_detectable_difference(list(values), list(values)) == pytest.approx(expected, abs=0.006)


def test_the_smallest_detectable_difference_of_non_inferiority_is_that_of_its_test() -> None:
    generator = np.random.default_rng(0)
    spread = np.linspace(-1, 1, 6)
    spread *= 0.4 / spread.std(ddof=1)
    smallest = smallest_detectable_difference(list(spread), list(spread), "non_inferiority", 0.5)
    samples_a, samples_b = generator.normal(smallest, 0.4, (1000, 6)), generator.normal(0, 0.4, (1000, 6))
    groups = ({"a": list(a), "b": list(b)} for a, b in zip(samples_a, samples_b, strict=True))
    shown = [compare(each, [("a", "b", "non_inferiority", 0.5)])[0].is_shown for each in groups]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


def test_comparisons_are_corrected_as_one_family_and_state_a_conclusion() -> None:
    groups = {"eca": [90.0, 90.1, 90.2, 90.3], "none": [88.0, 88.1, 88.2, 88.3], "se": [90.05, 90.1, 90.2, 90.25]}
    planned = [
        ("eca", "none", "difference", 0.0),
        ("eca", "se", "difference", 0.0),
        ("eca", "se", "non_inferiority", 0.5),
    ]
    against_none, against_se, not_inferior = compare(groups, planned)  # type: ignore[arg-type]
    assert against_none.p == pytest.approx(2 / math.comb(8, 4))
    assert against_none.p_holm == pytest.approx(2 * 2 / math.comb(8, 4))
    assert not against_none.is_shown
    [alone] = compare(groups, planned[:1])  # type: ignore[arg-type]
    assert alone.is_shown
    assert alone.conclusion == "eca is higher than none"
    assert against_se.conclusion.startswith("no difference shown, as no result")
    assert not_inferior.p == pytest.approx(1 / math.comb(8, 4))
    assert not_inferior.p_holm == pytest.approx(3 / math.comb(8, 4))
    assert not_inferior.is_shown
    assert not_inferior.conclusion == "eca is not worse than se by 0.5 or more"


def test_three_seeds_each_can_show_no_difference_however_large() -> None:
    groups = {"eca": [90.0, 90.1, 90.2], "none": [10.0, 10.1, 10.2]}
    [difference] = compare(groups, [("eca", "none", "difference", 0.0)])
    assert difference.p == pytest.approx(2 / 20)
    assert difference.conclusion == "no difference shown, as no result of so few seeds could"


def test_many_comparisons_need_more_seeds() -> None:
    groups = {name: [value, value + 0.1, value + 0.2, value + 0.3] for name, value in (("a", 1.0), ("b", 9.0))}
    planned = [("a", "b", "difference", 0.0), ("b", "a", "difference", 0.0)]
    [alone] = compare(groups, planned[:1])  # type: ignore[arg-type]
    assert alone.conclusion == "a is lower than b"
    for each in compare(groups, planned):  # type: ignore[arg-type]
        assert each.conclusion == "no difference shown, as no result of so few seeds could"


def test_twenty_seeds_each_are_tested_exactly() -> None:
    from scipy import stats

    dice = random.Random(0)
    a, b = ([dice.gauss(mean, 1) for _ in range(20)] for mean in (0.0, 0.5))
    p = permutation_p(a, b, alternative="two-sided")
    assert p == pytest.approx(stats.ttest_ind(a, b).pvalue, rel=0.05)


def test_too_many_splits_and_empty_groups_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="takes at most 40 of both together"):
        permutation_p([0.0] * 21, [1.0] * 20, alternative="greater")
    with pytest.raises(InvalidConfig, match="at least one value"):
        permutation_p([], [1.0], alternative="greater")
