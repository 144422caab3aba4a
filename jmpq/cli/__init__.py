"""The command line: options and one call of a step each."""
