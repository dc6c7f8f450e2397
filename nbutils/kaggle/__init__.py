"""Kaggle: bundles a notebook for it, and there finds, continues and keeps what earlier sessions made."""
