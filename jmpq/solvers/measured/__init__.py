"""Searches on a measured or predicted loss of whole allocations."""
