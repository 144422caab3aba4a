"""What numbers and lists an option takes, for every option in the same words."""

import math

MOST = 10**9  # of a count
SEEDS = 2**31  # JAX's and NumPy's generators take these


def counts(options: object, *names: str, least: int = 1, most: int = MOST) -> None:
    """Raise `ValueError` where a whole number is out of range; None stands for a default."""
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name}={value!r}: give a whole number.")
        if value < least:
            raise ValueError(f"{name}={value}: give at least {least}.")
        if value > most:
            raise ValueError(f"{name}={value}: give at most {most}.")


def between(
    options: object,
    least: float,
    most: float,
    *names: str,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise `ValueError` where a number is NaN or out of range; None stands for a default.

    Args:
        options: The options.
        least: Least value.
        most: Greatest value.
        names: Options that are checked.
        above: Whether the least value itself is refused.
        below: Whether the greatest value itself is refused.
    """
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        inside = (least < value if above else least <= value) and (
            value < most if below else value <= most
        )
        if not (inside and math.isfinite(value)):
            low = f"{'above' if above else 'of at least'} {least:g}"
            high = f"{'below' if below else 'at most'} {most:g}"
            raise ValueError(f"{name}={value}: give a number {low} and {high}.")


def check_seed(options: object) -> None:
    """Raise `ValueError` where `seed` is negative or too large for the generators."""
    counts(options, "seed", least=0, most=SEEDS - 1)


def check_batches(options: object, *names: str) -> None:
    """Raise `ValueError` where the batch size, the seed or a further count is wrong."""
    counts(options, "batch_size", *names)
    check_seed(options)


def not_empty(options: object, *names: str) -> None:
    """Raise `ValueError` where a list has nothing in it."""
    for name in names:
        if not getattr(options, name):
            raise ValueError(f"{name} is empty: give at least one, or leave it out.")
