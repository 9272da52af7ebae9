"""Calibration: the sampler against data from the prior (SBC) and against itself (Geweke)."""
