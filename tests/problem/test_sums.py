import math
from fractions import Fraction

import numpy as np
import pytest

from jmpq.problem.exact_sum import exact_sum

RNG = np.random.default_rng(0)
MANY = 5000
NUMBERS = {
    "few": RNG.normal(size=10),
    "none": np.zeros(0),
    "zeros": np.zeros(MANY),
    "integers": RNG.integers(0, 10**9, MANY).astype(float),
    "one_scale": RNG.normal(size=MANY),
    "wide": RNG.normal(size=MANY) * 10.0 ** RNG.uniform(-200, 200, MANY),
    "losses": RNG.lognormal(0, 2, MANY) * 4.0 ** -RNG.integers(2, 10, MANY),
    "huge": np.append(np.full(MANY, 1e299), -1e303),
    "tiny": RNG.integers(-9, 9, MANY) * 5e-324,
    "cancelling": np.concatenate([x := RNG.normal(size=MANY) * 1e9, -x, [1e-9]]),
    "halfway": np.append(np.zeros(MANY), [1.0, 2.0**-53, 2.0**-110]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_sums_are_correctly_rounded_in_any_order(name):
    numbers = NUMBERS[name]
    want = float(sum(map(Fraction, numbers.tolist()), Fraction(0)))
    assert exact_sum(numbers) == want == math.fsum(numbers)
    assert exact_sum(numbers[::-1]) == want


def test_what_is_not_finite_stays_so():
    assert exact_sum(np.append(np.ones(MANY), np.inf)) == math.inf
    assert math.isnan(exact_sum(np.append(np.ones(MANY), np.nan)))
