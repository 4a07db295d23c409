"""Measurements that are run by hand: their options and figures are in each file."""
