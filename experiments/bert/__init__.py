"""BERT: groups of scales, embedding bits, sentence tasks, attention under quantization."""
