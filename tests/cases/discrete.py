"""Discrete latents, and their relaxation."""
