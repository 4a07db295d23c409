"""Normals and other simple priors."""
