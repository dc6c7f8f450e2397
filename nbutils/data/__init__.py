"""Notebook 01: conversations in, tokenised training and evaluation sets out, every raw row accounted for."""
