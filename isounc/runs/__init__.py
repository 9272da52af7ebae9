"""What every experiment needs and none owns: command line, run folders, executors, provenance, tables, pages."""
