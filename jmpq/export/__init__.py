"""From an allocation to a file that another program runs: integer codes, not fake ones.

For those who deploy, to another runtime or to JAX itself. Start with `codes.take_codes`: the
network under one allocation, its kernels as the integers that its accuracy was measured with;
they are taken from the quantizers, never computed again. Then write a file::

    coded = take_codes(network, quantizers, allocation)
    save_packed("net.safetensors", coded, architecture="resnet20")
    jmpq.load_packed("net.safetensors").logits(inputs)
    save_onnx("net.onnx", coded)

The packed file is the base: every bit-width of every grid, its payload as many bytes as cost
``size_bytes`` says, to the byte. What no cost counts lies beside it: frozen statistics, scales
of inputs, corrections, and a header. ONNX needs the extra ``onnx``; codes are stored at 2, 4,
8 or 16 bits, the next that there is. Of a fine-tuned network pass its own network, quantizers,
allocation and corrections.

- `codes`: `Coded`, what every exporter takes. `bit_strings`: codes of 1 to 16 bits, no gaps.
- `packed`: packed safetensors, with a loader that unpacks inside the compiled program.
- `onnx_graph`: ONNX, by the walk that evaluates the network. `onnx_ops`: a rule for every
  primitive. `onnx_values`: what flows there. `onnx_fusion`: what follows a product, moved into
  it, as integer kernels need it.
- `check`: a file in its own runtime, beside the evaluation.

To add a primitive of ONNX, write its rule in `onnx_ops`. To add a format, write a function that
takes a `Coded` and a path, name the format in `check.Format` and in ``Export`` of
`jmpq.run.options`, and give `jmpq.run.steps.export` its runner.
"""
