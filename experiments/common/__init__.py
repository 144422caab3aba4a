"""What experiments share: arguments, networks and data, steps, provenance of results."""
