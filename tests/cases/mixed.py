"""Likelihoods made of others."""
