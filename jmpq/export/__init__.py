"""From an allocation to a file that another program runs: integer codes, not fake ones.

For those who deploy, to any runtime or to JAX itself. Start with `codes.take_codes`: the network under one allocation, its
kernels as the integers that its measured accuracy was measured with; they are taken from the
quantizers, never computed again. Then write a file::

    coded = take_codes(network, quantizers, allocation)
    save_packed("net.safetensors", coded, architecture="resnet20")
    jmpq.load_packed("net.safetensors").logits(inputs)

The packed file is the base: every bit-width of every grid, its payload as many bytes as cost
``size_bytes`` says, to the byte. What no cost counts lies beside it: frozen statistics, scales
of inputs, corrections, and a header that says what the file was made from. Of a fine-tuned network pass its own network, quantizers,
allocation and corrections.

- `codes`: `Coded`, what every exporter takes. `bit_strings`: codes of 1 to 16 bits without gaps.
- `packed`: packed safetensors, with a loader that unpacks inside the compiled program.

To add a format, write a function that takes a `Coded` and a path. It must run what it wrote:
give its runtime a case in `jmpq.run.steps.export`, and what it cannot express a sentence.
"""
