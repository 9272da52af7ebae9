"""Calibration tests the sampler on data from the prior (SBC) and against itself (Geweke)."""
