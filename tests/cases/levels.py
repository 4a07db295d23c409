"""Likelihoods of levels, and of [0, 1]."""
