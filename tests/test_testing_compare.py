"""Differences of trees by the names of their leaves."""

import numpy as np
import pytest

from stackjax import testing


def test_differences_have_names():
    a, b = {"one": np.zeros(2), "two": np.ones(3)}, {"one": np.zeros(2), "two": np.array([1.0, 1.0, 1.5])}
    assert testing.differences(a, b) == {"one": 0.0, "two": pytest.approx(1 / 3, rel=1e-5)}
    assert testing.largest_difference(a, a) == testing.largest_difference({}, {}) == 0
    for other, message in (
        ({"one": np.zeros(2)}, "different structures"),
        ({"one": np.zeros(3), "two": np.ones(3)}, r"one has the shapes \(2,\) and \(3,\)"),
        ({"one": np.full(2, np.nan), "two": np.ones(3)}, "one is not finite"),
    ):
        with pytest.raises(AssertionError, match=message):
            testing.differences(a, other)
