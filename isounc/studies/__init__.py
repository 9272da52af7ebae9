"""Studies: one folder each, all of the same few files (settings, cell, tables, figures, report)."""
