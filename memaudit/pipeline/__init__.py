"""The story of one audit, from a path or a module in memory to the report."""
