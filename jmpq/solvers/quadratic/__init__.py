"""Cross-layer terms: a loss that counts pairs of layers too, under any budgets.

The whole Gauss-Newton matrix (or measured pairs) makes the knapsack an integer quadratic
program: Σ losses + Σ over pairs of layers of interactions. These solvers also take problems
without such terms, where those of `knapsack` are faster.

By default `branch_and_bound`, up to a thousand (layer, choice) pairs: it proves the optimum of
tens of layers, and the gap that is left where time runs out. Beyond, and for its first answer,
`tabu_search`: good allocations, and only the coarse bound of `row_bound`.
`brute_force` tries all allocations of a few layers and is the reference of the tests.

What the proof rests on:

- `lifted`: the problem as a matrix over y = (1, options, budgets left), loss = ⟨M, y yᵀ⟩, and
  what is left of it when options are ruled out;
- `semidefinite`: the doubly nonnegative relaxation of y yᵀ. Alternating directions improve a
  multiplier, and any multiplier proves a bound, for the whole and for every single option; so
  no proof depends on convergence;
- `branch_and_bound`: rules out options by their own bounds, divides what is left;
- `row_bound`: a cheap and coarse bound that ends in that of a knapsack.

`neighbourhood` holds the moves, single changes and swaps of budget between two groups, that
tabu search and the searches of `measured` make. The linearized program and other bounds from
the literature are rivals in `experiments/iqp_rivals.py`; none is tighter there.
"""
