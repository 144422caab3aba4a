"""Latency: seconds of every layer under every choice, for budgets and beside measurements.

For those whose budget is a time. Start with `whole_networks.measure_latency`: networks at a
designed set of allocations are exported, timed in turns, and a sum over layers is fitted::

    found = measure_latency(network, quantizers, choices, inputs, runtime("onnxruntime"))
    found.table.write("latency.csv")             # layer, choice, seconds
    found.held_out_error, found.repeatability    # of networks that the fit did not see

Seconds of single layers do not add up to those of the network: runtimes fuse layers, and a
border between integer and float kernels costs a conversion. So nothing is summed from
micro-benchmarks, and the error on held-out networks stands beside how well one measurement
repeats.

- `table`: seconds by layer and choice, as CSV from here or from any other tool, and the cost
  ``latency_s`` that it makes.
- `design`: which networks to measure: kernels, terms of the linear model, D-optimal choice.
- `runtimes`: programs that run ONNX files; onnxruntime is the default, OpenVINO the other one.
- `measure`: timing in turns, processor time and wall time, one thread.
- `fit`: the model: a term a layer, borders, and the table that never falls below it.
- `whole_networks`: all of this in one call. `record`: what it leaves in a run folder.
- `hardware`: analytic models, for hardware that is not at hand and for widths that no runtime
  of a CPU is faster at: roofline, bit-serial, BitFusion, each with published numbers.

To add a runtime, give it an entry in ``runtimes.RUNTIMES``; a hardware model, write it in
`hardware` with a cited entry in ``PRESETS``. Name both in ``Latency`` of `jmpq.run.options`.
"""
