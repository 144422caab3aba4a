"""Joint predictions from changes of the logits."""
