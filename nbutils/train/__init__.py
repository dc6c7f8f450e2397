"""Notebook 02: supervised fine-tuning of a base model on the conversations of notebook 01."""
