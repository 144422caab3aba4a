"""The steps of a run, one function a file: from a folder and options to an artifact.

Each reads the artifacts that it needs, does its work, writes one artifact and returns it:
``step(folder, options, *, reporter)``. Options are dataclasses that check themselves, so that
what is impossible is refused before any work. ``@writes`` (`jmpq.run.lock`) lets one process
at a time write to a folder.

- `train`: weights of a built-in network. `layers`: the layer table of any network.
- `sensitivity`: quantizers, the losses of every layer and choice, composed logits.
- `solve`: a plan of allocations with proofs and predictions; needs no data.
- `race`, `refine`, `floor`: add allocations to a plan that measurement has chosen: the best of
  the solutions, one improved by swaps, the cheapest above an accuracy floor.
- `evaluate`: measured outcomes of a plan. `measure`: of any allocations, example by example;
  it writes no artifact. `finetune`: the network trained for an allocation's bits.
- `instance`: the problems of a plan as files, for other solvers.
- `export`: a file that another program runs, and how it agrees with the evaluation.
- `latency`: seconds of every layer and choice, for budgets on latency; a plan's, measured.

Where a step is interrupted, its journal in the folder's ``store`` keeps what is finished, and
the same call goes on from there. Only `train` and `finetune` keep checkpoints of their own.

To add a step, write its options as a class in `jmpq.run.options` and its function here. Name
both in `jmpq.run` (``_STEPS``, ``_OPTIONS``). A new artifact gets an ``ArtifactKind`` in
`jmpq.run.artifacts` and a property of ``RunFolder``. A step that adds allocations to a plan is
named in ``ADDED`` of `solve`, or solving again drops them. Its command comes last: `jmpq.cli`.
"""
