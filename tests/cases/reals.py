"""Likelihoods of real numbers."""
