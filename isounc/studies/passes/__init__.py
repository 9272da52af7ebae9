"""Passes: what the estimates gain from K networks in place of one, and at what cost."""
