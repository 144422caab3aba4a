"""Networks and their layer tables (import the modules; `layers` needs no JAX)."""
