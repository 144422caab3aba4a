"""The built-in networks and their published weights."""
