"""Allocations in the configuration formats of other quantization tools; no codes inside.

For those who quantize with another tool and want the bits that jmpq chose. Each file of this
folder has one function of the same signature, and `tools` names them all::

    told = tell("qwix", coded)  # a `Coded` of `jmpq.export.codes`
    told.content                # JSON
    told.left_out               # options that the tool has no way to express, as sentences

A choice that a tool does not support raises `NotExpressible`, which names the layer, the choice
and what the tool supports; it is never replaced. Other losses (grids, clipping, codes found by
GPTQ) are listed in ``left_out``. The tool then finds its own scales, so its accuracy differs
from the one that jmpq measured. To keep the codes, use a packed file, ONNX or LiteRT.

- `qwix`: rules for `qwix.QuantizationRule`; ranges of inputs included. Where the grids agree
  its logits are ours.
- `aimet`: encodings of AIMET beside a float ONNX file; every scale and zero point included.
- `compressed_tensors`: ``quantization_config`` of Hugging Face, llm-compressor and vLLM.
- `modelopt`: ``quant_cfg`` of NVIDIA's Model Optimizer.
- `maxtext`: bits by layer for MaxText's ``quantization="intmp"``.
- `ai_edge`: recipe of ai-edge-quantizer, for a ``.tflite`` file whose tensors carry our names.
- `hawq`: ``bit_config`` of HAWQ, for its ResNet-18, 50 and 101.
- `contents`: the common result and error. `tools`: all tools by name.

Layers have the names of their parameters, with dots for PyTorch tools. Built-in networks use
the names of their published weights.

To add a tool, write a file here with one function of a `Coded` that returns a
`contents.Exchange`. Name it in `tools.TOOLS` and in ``ExportFormat`` of `jmpq.run.options`.
`jmpq.export.targets` takes it from there. tests/export/test_exchange.py tests all tools.
"""
