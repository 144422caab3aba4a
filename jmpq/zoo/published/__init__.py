"""Weight files of others: every format and every naming becomes names to arrays, as PyTorch's.

For the loaders of `jmpq.zoo`; whoever wants the variables of a built-in network calls
``jmpq.zoo.weights.load_weights``, which comes here for whatever jmpq did not write itself.

Start with `match`: ``read_leaves`` gives the arrays of a network's variables from any file,
checked by name, shape and value. Files may be

- safetensors, one file, or shards with their ``.index.json``;
- PyTorch's files (``.pth``, ``.pt``, ``.th``, ``.bin``, ``.ckpt``, ``.pth.tar``), also in
  shards; a checkpoint of a training may hold more than the weights;
- Flax trees: ``.msgpack`` of ``flax.serialization``, a folder of orbax, ``.npz`` of big_vision;
- a folder with one of these.

No pickle is ever run: `pickles` reads the tensors out of it without calling anything in it,
and without PyTorch. Flax trees are brought to PyTorch's form (kernels with outputs first), so
that names are matched in one way only. Prefixes that training scripts put before the names
(``module.``, ``model.``, ``bert.`` ...) are taken off where the network's names fit better
without them.

- `files`: any file or folder to names and arrays.
- `pickles`: PyTorch's files.
- `image_names`, `vit_names`: names of timm, torchvision, big_vision and others, as the
  built-in networks have them.
- `match`: prefixes, names, shapes; arrays for the leaves of a network.

To read one more naming, write a function from names to names and call it in `match`.
"""
