"""The command line: one file a step, each writing one artifact of a run folder."""
