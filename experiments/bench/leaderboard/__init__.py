"""Every solver on MPQ-Lib: `rivals` are the solvers, `measure` runs them all.

The problems are those of `experiments.mpq_lib`; the tables are drawn by
`experiments.figures.solving.leaderboard` from the JSON alone.
"""
