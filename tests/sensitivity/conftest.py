"""What the tests of all metrics share."""

import pytest

from tests.sensitivity.dense import Dense


@pytest.fixture(scope="session")
def dense() -> Dense:
    """One dense reference for all metrics."""
    return Dense()
