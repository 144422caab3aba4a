"""Claims on predictions, of single layers and of whole allocations."""
