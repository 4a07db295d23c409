"""Latents on the sphere."""
