"""MPQ-Lib: a library of problems with one choice per group, with what is known of each.

Real networks (`networks`): tables and cross-layer matrices that the experiments here have
committed, under one budget, several, or budgets with cross-layer terms. Public sets (`public`):
problems of the same form that others have made, with the best values published; they lie in
``solvers/`` of the data folder, whose README gives their sources.

Every problem is a `jmpq.problem.Instance`; `export` writes them as files for other programs.
`experiments.bench.leaderboard` runs solvers on all of them and keeps the best values found.
"""
