"""Agreement: the sampler against NumPyro's NUTS, within Monte Carlo error."""
