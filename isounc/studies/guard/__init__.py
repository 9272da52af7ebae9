"""Guard: whether thresholds with a guarantee keep it, and what they cost in answers."""
