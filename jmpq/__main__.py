"""``python -m jmpq``: the command line."""

from jmpq.cli.main import main

main()
