"""Covariance: what a covariance of the parameters from other data does."""
