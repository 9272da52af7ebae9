"""Spectrum: is the posterior isotropic where it matters? Curvature, draws and coordinates."""
