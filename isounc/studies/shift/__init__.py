"""Shift: gradient norms, and scores made for it, on inputs in and out of distribution."""
