"""Cross-layer terms: a loss with terms of pairs of layers, under any budgets.

The full Gauss-Newton matrix, or measured pairs, turns the knapsack into an integer quadratic
program: the sum of losses plus the sum of interactions over pairs of layers. These solvers also
take problems without such terms, for which those of `knapsack` are faster.

The default is `branch_and_bound` up to a thousand (layer, choice) pairs. It proves the optimum
for tens of layers, and a gap when time runs out. Its first answer, and the default beyond that
size, is `tabu_search`: good allocations with the coarse bound of `row_bound`. `brute_force`
tries all allocations of a few layers and is the reference of the tests.

The proof consists of:

- `lifted`: the problem as a matrix over y = (1, options, budgets left), with loss = ⟨M, y yᵀ⟩,
  and its restriction when options are ruled out;
- `semidefinite`: the doubly nonnegative relaxation of y yᵀ, by alternating directions. Any
  multiplier proves a bound, for the problem, for every option and for every pair of options,
  so no proof depends on convergence;
- `triangles`: inequalities between three groups that tighten it, used where they pay;
- `branch_and_bound`: rules out options and pairs of options by their bounds and divides the
  remaining problem;
- `row_bound`: a cheap, coarse bound from a knapsack.

`quadratic_program` is SCIP on the same program, an independent rival with its own bound.
`priced_walk` is the walk of `tabu_search`: one group changes at a time, and exceeded budgets
are penalised at prices that rise while they are exceeded. `experiments/quadratic/iqp_rivals.py`
compares the linearized program and other bounds from the literature; none is tighter there.
"""
