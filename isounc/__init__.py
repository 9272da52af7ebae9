"""When, where and why isotropic gradient norms agree with Bayesian predictive uncertainty."""

__version__ = "0.1.0"
