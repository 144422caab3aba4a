"""Figures and tables, drawn from the committed results alone."""
