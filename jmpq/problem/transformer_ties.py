"""Ready-made ties: what takes one choice together in a transformer."""

from typing import Literal, get_args

from jmpq.kinds import check_kinds
from jmpq.problem.rules import Rule, Tie

Unit = Literal["encoder_layer", "matrix", "head"]
TIES: dict[str, tuple[Rule, ...]] = {
    "encoder_layer": (Tie((r"(.*\blayers?/\d+)/.*",)),),
    "matrix": (Tie((r"(.*\blayers?/\d+/attention/.*\D)/\d+",)),),
    "head": (Tie((r"(.*\blayers?/\d+)/attention/.*/(\d+)",)),),
}


@check_kinds
def transformer_units(unit: str, *, split_heads: bool = False) -> tuple[Rule, ...]:
    """Rules that make a part of a transformer the unit of choice.

    Layers are told by their names, as of `jmpq.zoo.bert`: ``encoder/layer/3/...``, and
    ``.../attention/self/query/7`` where every head has kernels of its own.

    Args:
        unit: One of `Unit`. ``encoder_layer``: all matrices of an encoder layer, as in
            Q-BERT. ``matrix``: every matrix by itself. ``head``: query, key, value and output
            of one attention head; the other matrices by themselves.
        split_heads: Whether heads have kernels of their own. Without it a matrix needs no
            rule, and a head cannot be a unit.

    Raises:
        ValueError: If there is no such unit in such a network.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit={unit!r}: choose one of {', '.join(get_args(Unit))}.")
    if unit == "head" and not split_heads:
        raise ValueError(
            "A head can be a unit only where heads have kernels of their own: build the "
            "network with split_heads=True."
        )
    return () if unit == "matrix" and not split_heads else TIES[unit]
