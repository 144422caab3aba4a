"""The command line: options and one call of a step each.

For the shell. What a command decides is decided in `jmpq.run`, which notebooks call too; here
is only what a terminal needs: parsing, help, exit codes and printing.

- `main`: lists the steps, parses, and turns every error into one line (exit code 1; 2 where
  the arguments are at fault; 130 for an interruption).
- `commands`: one function a step. Its arguments are the dataclasses of `jmpq.run.options`,
  whose field documentation is the help; its docstring is the text above the options.
- `arguments`: what the parser would take silently: a flag given twice, an empty list.
- `show`: results as tables in the terminal.

Nothing is printed by the steps themselves: they report to a `Reporter`, which here is the
terminal (`jmpq.run.progress`), with bars where it is one and lines where it is a log.

Importing is part of a command's time: ``jmpq --help`` and `jmpq solve` load no JAX, so packages
are imported inside the functions that need them.

To add a command, first write its step (`jmpq.run.steps`). Then write a function in `commands`
whose docstring ends in "For example: jmpq NAME runs/...", and name it in ``STEPS`` and
``DESCRIPTION`` of `main`, in tests/cli/test_help.py, in tests/cli/fuzz.py, and in the table of
docs/guides/steps.md.
"""
