"""A problem as an integer program in an LP or MPS file, for solvers that know no jmpq."""

import pathlib
from typing import Any

import numpy as np

from jmpq.files import atomic_file
from jmpq.problem.instances.highs import quiet_highs
from jmpq.problem.problem import Problem


def write_program(path: pathlib.Path, problem: Problem) -> None:
    """Write the integer program in LP or MPS format, by the name of the file.

    One binary variable ``x_GROUP_CANDIDATE`` for every candidate that a group of tied layers
    may choose (groups numbered as `Problem.groups`, candidates by column), one equation
    ``choose_GROUP`` a group, one row a budget, in units of a power of two where its numbers are
    small (seconds). Cross-layer terms are a quadratic objective,
    which most mixed-integer solvers read; HiGHS reads it and solves none.

    Raises:
        ValueError: If the name ends in neither ``.lp`` nor ``.mps``.
        OSError: If the file cannot be written.
        RuntimeError: If HiGHS cannot write the program.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".lp", ".mps"):
        raise ValueError(f"{path} has no format: expected a name that ends in .lp or .mps.")
    model = highs_model(problem)
    with atomic_file(path) as file:
        # HiGHS writes files by name only, and tells the format by it.
        aside = pathlib.Path(f"{file.name}{path.suffix}")
        try:
            status = model.writeModel(str(aside))
            if status.name == "kError":
                raise RuntimeError(f"HiGHS cannot write {path}.")
            file.write(aside.read_bytes())
        finally:
            aside.unlink(missing_ok=True)


def highs_model(problem: Problem) -> Any:
    """The integer program as a quiet `highspy.Highs`; variables in order of (group, choice)."""
    import highspy

    reduced = problem.reduced(interactions=True)
    groups, choices = np.nonzero(reduced.allowed)
    count, budgets = len(groups), len(reduced.limits)
    rows = int(groups[-1]) + 1
    model = highspy.HighsModel()
    lp = model.lp_
    lp.num_col_, lp.num_row_ = count, rows + budgets
    lp.col_cost_ = reduced.losses[groups, choices]
    lp.col_lower_, lp.col_upper_ = np.zeros(count), np.ones(count)
    lp.integrality_ = [highspy.HighsVarType.kInteger] * count
    lp.row_lower_ = np.concatenate([np.ones(rows), np.full(budgets, -np.inf)])
    # Solvers allow rows an absolute error, which is much of a budget of milliseconds that is
    # stated in seconds. Powers of two change no digit.
    open_costs = np.where(reduced.allowed, reduced.costs, 0.0)
    large = np.maximum(np.abs(reduced.limits), np.abs(open_costs).max(axis=(1, 2)))
    units = np.exp2(np.maximum(0, 10 - np.floor(np.log2(np.where(large > 0, large, 1024)))))
    lp.row_upper_ = np.concatenate([np.ones(rows), units * reduced.limits])
    lp.col_names_ = [f"x_{g}_{c}" for g, c in zip(groups, choices, strict=True)]
    lp.row_names_ = [
        *(f"choose_{g}" for g in range(rows)),
        *(f"budget_{k}" for k in range(budgets)),
    ]
    costs = units[:, None] * reduced.costs[:, groups, choices]
    table = np.concatenate([(groups == np.arange(rows)[:, None]).astype(float), costs])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    at, entries = np.nonzero(table.T)
    lp.a_matrix_.start_ = np.searchsorted(at, np.arange(count + 1))
    lp.a_matrix_.index_, lp.a_matrix_.value_ = entries, table.T[at, entries]
    if reduced.interactions is not None:
        every = groups * reduced.losses.shape[1] + choices
        size = reduced.losses.size
        cross = np.triu(reduced.interactions.reshape(size, size)[np.ix_(every, every)])
        first, second = np.nonzero(cross)
        hessian = model.hessian_
        # ½ xᵀHx with H symmetric: each pair once is its entry of H, column by column.
        hessian.dim_, hessian.format_ = count, highspy.HessianFormat.kTriangular
        hessian.start_ = np.searchsorted(first, np.arange(count + 1))
        hessian.index_, hessian.value_ = second, cross[first, second]
    quiet_highs()
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.passModel(model)
    return highs
