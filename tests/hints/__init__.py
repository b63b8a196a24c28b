"""Hints: every one the program can print, and what follows it."""
