"""The bank of reference posteriors, as data: `isounc.references.load` reads it."""
