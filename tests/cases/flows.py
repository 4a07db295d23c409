"""Normalising flows, and mixtures with pathwise gradients."""
