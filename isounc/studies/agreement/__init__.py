"""Agreement compares the sampler with NumPyro's NUTS, within Monte Carlo error."""
