"""The audits, a file each: is an example memorized, in which units and layers, and when was it learned."""
