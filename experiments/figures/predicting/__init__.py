"""Tables and figures of predictions."""
