"""Problems as files: for other solvers, for benchmarks, and for whoever wants them back.

For those who try a solver that is not here, or keep a set of problems with what is known of
them. A problem needs no network: a table of losses, tables of costs and budgets are enough, and
candidates may have any labels. Start with `instance.Instance`, a problem with its name and the
best value known::

    write_instance(path, Instance(name="resnet20", problem=problem))
    problem = read_instance(path).problem
    write_program(path.with_suffix(".mps"), problem)

A file in JSON can be read and written by hand; npz holds the same fields and is smaller. LP
and MPS are the integer program, written by HiGHS, for solvers that know no groups; cross-layer
terms are a quadratic objective there.

- `instance`: the documented format, JSON or npz, with what is known of the best value.
- `program_file`: the same problem as an integer program, LP or MPS.
- `highs`: HiGHS without its lines on standard output.

``jmpq instance RUN`` writes the problems of a run here; `experiments.mpq_lib` reads the public
sets into them. To add a format of other solvers, write a function of a path and a `Problem` in
`program_file`, and name its suffix in ``Instance`` of `jmpq.run.options`.
"""
