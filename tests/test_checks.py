"""Checks of single values: what is a number, a count, a kernel size or one of a few words."""

from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest

from eca_hub.checks import check_choice, check_count, check_kernel_size, is_number, is_whole
from eca_hub.errors import InvalidConfig


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_are_those_of_python_and_of_numpy(value: Any) -> None:
    assert is_whole(value)
    assert is_number(value)
    check_count("top_k", value)
    check_kernel_size("kernel_size", value)


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.bool_(True), np.float32(3), [3]])
def test_other_values_are_no_whole_numbers(value: Any) -> None:
    assert not is_whole(value)
    with pytest.raises(InvalidConfig, match=r"top_k is .*; it must be a whole number, 1 or more"):
        check_count("top_k", value)
    with pytest.raises(InvalidConfig, match=r"kernel_size is .*; a kernel with a center needs an odd size"):
        check_kernel_size("kernel_size", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), Fraction(1, 2), 10**300])
def test_numbers_are_finite_and_fit_a_float(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), 10**400, "0.5", None, True, 1j])
def test_other_values_are_no_numbers(value: Any) -> None:
    assert not is_number(value)


def test_a_count_has_an_upper_bound_where_one_is_given() -> None:
    check_count("num_classes", 10, most=10)
    with pytest.raises(InvalidConfig, match="num_classes is 11; it must be a whole number, 1 to 10"):
        check_count("num_classes", 11, most=10)


@pytest.mark.parametrize("value", ["tiny", None, ["small"]])
def test_a_word_that_is_none_of_the_choices_is_refused_with_all_of_them(value: Any) -> None:
    check_choice("stem", "small", Literal["default", "small"])
    with pytest.raises(InvalidConfig, match=r"stem is .*; it must be one of default, small\."):
        check_choice("stem", value, Literal["default", "small"])
