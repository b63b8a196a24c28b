"""One memorization estimate per example, made of named parts, each with its own score and p-value."""
