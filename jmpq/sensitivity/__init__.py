"""Sensitivities: the loss increase of every choice of every layer; one file a family."""
