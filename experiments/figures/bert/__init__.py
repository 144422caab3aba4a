"""Tables and figures of the BERT experiments."""
