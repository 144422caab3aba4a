"""Losses, training, and the evaluation of any parameters.

For those who train a float network first; a network that is already trained needs only
`losses`. All losses are functions of the output of one example, in nats, and of several
positions the mean; a mean over a batch is taken where it is used, and says so.

- `losses`: `cross_entropy`, the default everywhere; `kl_divergence` to the float network,
  which needs no labels; `squared_error` for regression and encoders.
- `labels`: the check of labels against the network's output, where data enters.
- `train`: `train` a linen module from random initialisation.
- `loop`: `TrainConfig` and the loop under every training, fine-tuning too: order of examples,
  optimizer and schedule, augmentation. The same arguments give the same weights.
- `checkpoint`: the state on disk; an interrupted training goes on to the same result.
- `evaluate`: loss and accuracy of ``apply(params, inputs)`` on a split, in one forward pass a
  batch. Quantized networks are measured by `jmpq.deploy` instead.
- `next_token`: loss and perplexity of a language model, the mean over all predicted tokens.

The defaults of `TrainConfig` are those of the digits network (AdamW, 15 epochs);
`jmpq.deploy.finetune` has its own.

To add a loss, write a function of (logits of one example, its target) to nats in `losses`, or
anywhere: metrics and evaluators take any such function. It needs a second derivative in the
logits for the curvature. To add an optimizer, name it in `TrainConfig.optimizer` and make it
in `loop.make_optimizer`.
"""
