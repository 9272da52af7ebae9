"""Scaling: how well the estimates track MCMC variance as the network grows."""
