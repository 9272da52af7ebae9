"""A second, costlier answerer, to which questions may be passed on."""
