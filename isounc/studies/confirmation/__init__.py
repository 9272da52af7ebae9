"""Confirmation: whether the logit-scaled estimate holds on what was not used to find it."""
