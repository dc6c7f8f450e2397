"""Trials of one profile with different values, and which of them can be told apart."""
