"""Data sets, fixed splits, batches: NumPy arrays on the host.

For the command line and the examples; whoever has arrays hands batches of (inputs, labels)
to the later stages and needs none of this. For the command line `dataset.Dataset.from_arrays`
makes a data set of them.

Start with `load.load_dataset`, which knows the data sets by name; the default is ``digits``,
which is embedded and small. A `dataset.Dataset` has two parts, ``train`` and ``heldout``,
each read as a `dataset.Split`: raw inputs, labels, and the normalisation that makes network
inputs of them. `splits.calibration_split` draws calibration examples and leaves the rest to
report accuracy on; the same seed gives the same examples. `batches.batches` makes batches of
one size, padding with weight zero.

- `dataset`: the two types. `splits`: calibration apart from evaluation. `positions`: which
  positions of an example count by their labels.
- `batches`: batches in a fixed order. `stream`: batches that are made when they are asked for.
- `digits`, `cifar10`, `imagenet`, `image_folder`: a data set each; `load`: by name.
- `images`: images that stay encoded until a batch asks for them.
- `text`: sentences, running text, tokenizers.
- `cifar10_builder`, `imagenet_builder`: programs that download and prepare data in the format
  of tensorflow-datasets without TensorFlow (``python -m jmpq.data.cifar10_builder``); what
  they share is in `archives`.

Nothing is downloaded by itself: data are read from a folder (``--data-dir``) or from where
tensorflow-datasets keeps them, and an error says how to get what is missing.

To add a data set, write a file here with a function that returns a `Dataset`, each part made
by `dataset.whole_split`. Name it in `load.DatasetName` and in `load.load_dataset`, from where
the command line takes it. A loss or a label of another kind needs no change here: labels are
integers, or floats for a regression.
"""
