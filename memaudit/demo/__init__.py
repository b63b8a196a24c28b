"""The model of `make demo`: a small network that memorizes labels changed on purpose, and its data."""
