"""Draw every figure and table: `python -m experiments.figures`."""

from experiments.figures.draw import main

main()
