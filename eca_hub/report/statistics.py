"""Statistics of a comparison between methods, each trained with several seeds.

Seeds are not paired: with one seed two different networks still start from unrelated weights, so the tests treat
the two groups as independent samples.

Sources: exact permutation test: Fisher, The Design of Experiments, 1935; step-down correction: Holm, Scandinavian
Journal of Statistics 6, 1979; power of the t test by the noncentral t distribution: Cohen, 1988.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from eca_hub.errors import InvalidConfig

ALPHA = 0.05
POWER = 0.8
MAX_VALUES = 40

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Kind = Literal["difference", "non_inferiority"]


@dataclass(frozen=True)
class Summary:
    """One group of results."""

    num_seeds: int
    mean: float
    std: float
    """Standard deviation over the seeds, with n - 1; NaN for one seed."""
    low: float
    """Lower end of the 95 % confidence interval of the mean, by Student's t; NaN for one seed."""
    high: float
    """Its upper end."""


@dataclass(frozen=True)
class Comparison:
    """Two groups compared."""

    a: str
    b: str
    kind: Kind
    margin: float
    """How much worse than `b` the method `a` may be; 0 for a difference."""
    difference: float
    """Mean of `a` less mean of `b`."""
    p: float
    """Exact p-value: two-sided for a difference, one-sided for non-inferiority."""
    p_holm: float
    """The same, corrected for all comparisons of the family."""
    smallest_difference: float
    """The true difference that a t test of as many seeds finds with a power of 0.8 at a level of 0.05, uncorrected; NaN
    where the exact test cannot reach that level."""
    can_be_shown: bool = True
    """Whether groups that do not overlap would have a corrected p-value of at most 0.05."""

    @property
    def is_shown(self) -> bool:
        """Whether the corrected p-value is at most 0.05."""
        return self.p_holm <= ALPHA

    @property
    def conclusion(self) -> str:
        """What the data show, in words."""
        if self.kind == "non_inferiority":
            if self.is_shown:
                return f"{self.a} is not worse than {self.b} by {self.margin:g} or more"
            missing = f"not shown that {self.a} is within {self.margin:g} of {self.b}"
        elif self.is_shown:
            return f"{self.a} is {'higher' if self.difference > 0 else 'lower'} than {self.b}"
        else:
            missing = "no difference shown"
        if not self.can_be_shown:
            return f"{missing}, as no result of so few seeds could"
        if self.kind == "difference" and not math.isnan(self.smallest_difference):
            return f"{missing} (smallest detectable: {self.smallest_difference:.2f})"
        return missing


def summarize(values: Sequence[float]) -> Summary:
    """Mean and 95 % confidence interval of the mean."""
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    std = float(np.std(values, ddof=1))
    half = float(special.stdtrit(n - 1, 1 - ALPHA / 2)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def permutation_p(a: Sequence[float], b: Sequence[float], *, alternative: Literal["two-sided", "greater"]) -> float:
    """Exact permutation test of the difference of two means.

    p is the share of all (n + m)! / (n! m!) ways to split the pooled values into groups of n and m whose difference of
    means is at least as extreme as the observed one, which is one of them.

    Args:
        a: n values.
        b: m values.
        alternative: `greater` counts differences a - b of at least the observed one, `two-sided` absolute differences.

    Raises:
        InvalidConfig: a group is empty, or there are too many splits to visit.
    """
    n, m = len(a), len(b)
    if not n or not m:
        raise InvalidConfig("A permutation test needs at least one value in each group.")
    if n + m > MAX_VALUES:
        raise InvalidConfig(
            f"{n} and {m} values are compared; an exact test takes at most {MAX_VALUES} of both together.",
            hint="Report fewer seeds.",
        )
    pooled = np.asarray([*a, *b], dtype=np.float64)
    # Sums in another order differ in the last bits: a tie must count as a tie.
    tolerance = 1e-9 * max(1.0, float(np.abs(pooled).max()))
    observed = float(np.mean(a) - np.mean(b))

    def count_from(difference: float) -> int:
        """Count the splits with at least this difference of means; their first group has at least this sum."""
        return _count_subsets(pooled, n, (difference - tolerance + pooled.sum() / m) / (1 / n + 1 / m))

    num_splits = math.comb(n + m, n)
    if alternative == "greater":
        return count_from(observed) / num_splits
    # The splits below are those that are not above the negative difference.
    below = num_splits - count_from(-abs(observed) + 2 * tolerance)
    return min(1.0, (count_from(abs(observed)) + below) / num_splits)


def _count_subsets(values: FloatArray, size: int, least_sum: float) -> int:
    """Count the subsets of a size whose sum is at least a number.

    Each subset is one of the first half of the values and one of the second, so that 2^20 sums are sorted instead of
    all subsets visited (Horowitz and Sahni, Journal of the ACM 21, 1974).
    """
    (sums_a, sizes_a), (sums_b, sizes_b) = (_subset_sums(half) for half in np.array_split(values, 2))
    count = 0
    for size_a in range(size + 1):
        sorted_b = np.sort(sums_b[sizes_b == size - size_a])
        first = np.searchsorted(sorted_b, least_sum - sums_a[sizes_a == size_a], side="left")
        count += int((len(sorted_b) - first).sum())
    return count


def _subset_sums(values: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the sum and the size of every subset."""
    sums, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    for value in values:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    return sums, sizes


def holm(p_values: Sequence[float], family_size: int | None = None) -> list[float]:
    """Correct p-values for their number: the k-th smallest of m times m - k + 1, made monotone, at most 1.

    Args:
        p_values: The values.
        family_size: m, where some comparisons of the family could not be computed; their number by default. Those count
            as larger than all others.
    """
    family_size = len(p_values) if family_size is None else family_size
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (family_size - rank)))
        corrected[index] = highest
    return corrected


def smallest_detectable_difference(
    a: Sequence[float], b: Sequence[float], kind: Kind = "difference", margin: float = 0.0
) -> float:
    """The true difference of means that a t test at 0.05 finds with a power of 0.8, given the pooled deviation.

    Args:
        a: n values.
        b: m values.
        kind: The test is two-sided for a difference, one-sided for non-inferiority.
        margin: How much worse than `b` the values of `a` may be; added to them before the test.

    Returns:
        The difference in the unit of the values, which with a margin may be negative; NaN where a group has fewer than
        two.
    """
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        return math.nan
    degrees = n + m - 2
    pooled_std = math.sqrt((np.var(a, ddof=1) * (n - 1) + np.var(b, ddof=1) * (m - 1)) / degrees)
    is_two_sided = kind == "difference"
    critical = float(special.stdtrit(degrees, 1 - ALPHA / 2 if is_two_sided else 1 - ALPHA))

    def missing_power(noncentrality: float) -> float:
        power = 1 - special.nctdtr(degrees, noncentrality, critical)
        if is_two_sided:
            power += special.nctdtr(degrees, noncentrality, -critical)
        return float(power) - POWER

    highest = 1.0
    while missing_power(highest) < 0:
        highest *= 2
    noncentrality = optimize.brentq(missing_power, 0.0, highest)
    return float(noncentrality * pooled_std * math.sqrt(1 / n + 1 / m)) - margin


def _least_p(n: int, m: int, kind: Kind) -> float:
    """The smallest p-value that groups of n and m can have."""
    # In groups of equal size the most extreme split always has a mirror image that is as extreme.
    num_extreme = 2 if kind == "difference" and n == m else 1
    return num_extreme / math.comb(n + m, n)


def compare(groups: dict[str, list[float]], planned: Sequence[tuple[str, str, Kind, float]]) -> list[Comparison]:
    """Run the planned comparisons as one family.

    Args:
        groups: Results by method.
        planned: Method a, method b, kind, margin. Comparisons of methods without results are left out, and count in the
            correction.
    """
    possible = [each for each in planned if groups.get(each[0]) and groups.get(each[1])]
    p_values = []
    for a, b, kind, margin in possible:
        if kind == "non_inferiority":
            shifted = [value + margin for value in groups[a]]
            p_values.append(permutation_p(shifted, groups[b], alternative="greater"))
        else:
            p_values.append(permutation_p(groups[a], groups[b], alternative="two-sided"))
    least_p = [_least_p(len(groups[a]), len(groups[b]), kind) for a, b, kind, _ in possible]
    return [
        Comparison(
            a,
            b,
            kind,
            margin,
            float(np.mean(groups[a]) - np.mean(groups[b])),
            p,
            p_holm,
            smallest_detectable_difference(groups[a], groups[b], kind, margin) if least <= ALPHA else math.nan,
            least_holm <= ALPHA,
        )
        for (a, b, kind, margin), p, p_holm, least, least_holm in zip(
            possible, p_values, holm(p_values, len(planned)), least_p, holm(least_p, len(planned)), strict=True
        )
    ]
