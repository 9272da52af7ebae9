"""The bank of reference posteriors: made, checked and installed."""
