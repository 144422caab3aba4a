"""The built-in networks and their published weights.

For those who want a known network by its name; whoever brings a network of their own needs
`jmpq.network` alone. The modules are plain Flax linen, know nothing of quantization, and are
called as ``module.apply(variables, inputs, train=False)``. Parameter paths follow the
published PyTorch weights, so that a state dict is read by its names.

Start with `architectures`: ``build_module("resnet20")`` gives the module of a name,
`ARCHITECTURES` lists the names, `Preprocessing` says what the inputs look like. Then
`weights.load_weights` reads variables from a file of jmpq or from a published one, whichever
the file is. The one to begin with is ``digits_resnet``: small, and its data are embedded.

- `resnet`, `mobilenet`, `squeezenet`, `vgg`: networks for images; `blocks` are their pieces.
- `bert`: encoders for sentences and their heads, attention in whole matrices or by heads.
- `architectures`: all of them by name.
- `weights`: variables from any file. Behind it are `tensor_files` (safetensors files of jmpq,
  with their header), `weights_torchvision` (state dicts of image networks; `timm_names`
  translates timm's) and `weights_bert` (published encoders).

To add a network, write its linen module in a file here, its parts named as in the published
weights, and give it a row in ``architectures._table``, from where the command line takes it,
and a word in the help of ``Train.model`` and ``Layers.model`` (`jmpq.run.options`). An encoder
is a row of ``bert.BERTS``. A new normalisation of inputs goes into
``architectures.PREPROCESSINGS``. Published weights of an image network need no more code if
the names agree; another layout gets a reader here and a branch in ``weights.load_weights``.
Weights are not stored here: people give the file. Tests: tests/zoo compares logits with an
independent implementation.
"""
