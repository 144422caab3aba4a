"""Export: from an allocation to a file with integer codes that another program runs.

For those who deploy, to another runtime or to JAX itself. Start with `codes.take_codes`. It
returns the network under one allocation, with its kernels as the integers that its accuracy was
measured with. They are read from the quantizers, never recomputed. Then write a file::

    coded = take_codes(network, quantizers, allocation)
    save_packed("net.safetensors", coded, architecture="resnet20")
    jmpq.load_packed("net.safetensors").logits(inputs)
    save_onnx("net.onnx", coded)

The packed file holds every bit-width of every grid. Its payload has exactly the bytes that cost
``size_bytes`` counts. The file also holds what no cost counts: frozen statistics, scales of
inputs, corrections and a header. ONNX needs the extra ``onnx`` and stores codes at the next of
2, 4, 8 or 16 bits. ONNX runtimes are fast if activations were calibrated with placement
``stream``. For a fine-tuned network pass its own network, quantizers, allocation and
corrections.

- `codes`: `Coded`, the argument of every exporter. `float_codes`: bit patterns of float
  formats. `bit_strings`: codes of 1 to 16 bits without gaps.
- `packed`: packed safetensors, with a loader that unpacks inside the compiled program.
- `stablehlo`: the same as a program of `jax.export`, which runs without jmpq.
- `onnx_graph`: ONNX, by the walk that evaluates the network. `onnx_ops`: one rule per
  primitive. `onnx_values`: the values of the walk. `onnx_patterns`: one node for softmax, layer
  normalisation and GELU. `onnx_fusion`: fusion of operations after a product into it, which
  integer kernels need.
- `litert`: LiteRT, by its own converter and quantizer. `litert_file`: our codes in its file.
  `matching`: identification of layers in a file that another program wrote.
- `exchange`: small files that tell other tools the bits of every layer.
- `check`: a file in its runtime, compared with jmpq. `targets`: all formats by name.

To add a primitive of ONNX, write its rule in `onnx_ops`. To add a format, write a function that
takes a `Coded` and a path. Give it an entry in `targets.TARGETS` with its runners, and name it
in ``ExportFormat`` of `jmpq.run.options`. To add a tool that reads bits, see `exchange`.
"""
