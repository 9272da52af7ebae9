"""The bank study makes, checks and installs reference posteriors."""
