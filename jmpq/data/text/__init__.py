"""Text as data: sentences with a label each, and running text.

For networks that read tokens; images need none of this. Nothing is downloaded: sentences,
running text and tokenizers are read from folders, and an error says what is missing.

Start with `jmpq.data.load.load_dataset`, which knows the data sets by name: ``sst2`` for
sentences with classes, ``text`` for windows of running text, whose labels are the next tokens,
``documents`` for documents one by one.

- `tokens`: tokenizers. ``read_tokenizer`` reads one from a file, for an encoder of sentences
  (``[CLS] sentence [SEP]``, padded) or for running text (ids, nothing added but what the
  tokenizer itself adds); ``train_tokenizer`` makes one from sentences.
- `glue`: SST-2 and STS-B, a task of sentences each.
- `windows`: running text, from text files or files of token ids, as inputs
  ``[examples, length]`` and labels of the same shape: the token that follows each. Windows do
  not overlap, so that calibration and evaluation examples share no token that is predicted.

The loss of a window is the mean over its positions (``jmpq.training.losses``); every token
counts alike in ``jmpq.training.next_token``, which gives the perplexity.

To add a task of sentences, add its files and its reader to `glue`; another form of running
text is one more way to cut ids in `windows`.
"""
