"""From an allocation to a network whose outcome is measured, and to one that is fine-tuned.

For those who want to know what an allocation really costs. Start with `measure.Evaluator`::

    evaluator = Evaluator(network, quantizers, batches)
    outcomes = evaluator([allocation, ...])  # .loss, .kl, .top1, each with its standard error

One compiled program measures all allocations. Measure on examples that were used neither for
training nor for calibration. Networks whose output is the similarity of two sentences have an
evaluator of their own; its scores are correlations.

- `measure`: `Evaluator`, loss, KL divergence to the float network, accuracy.
- `similarity`: `SimilarityEvaluator`, rank correlation with people's scores.
- `race`: the best of many allocations, the hopeless ones dropped after a few batches.
- `correction`: outputs of quantized layers brought back to the mean and spread they had; free
  of training, and the default before fine-tuning.
- `finetune`: quantization-aware training under an allocation, scales learned (``lsq``) or
  fixed (``ste``), taught by the float network.
- `finetuned`: its result, as a value and as a file.

Everything here is simulated: values are on the grids, arithmetic is float. Latency is never
claimed from it.

Files that other programs run are written by `jmpq.export`, the next stage.

To add a score, extend `measure.Outcome`, `measure._scores` and `measure.outcome_of`; to add a
correction, `correction.Correct` and `correction.find_corrections`.
"""
