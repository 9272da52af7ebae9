"""Thirteen claims of the paper, settled from the tables of all studies."""
