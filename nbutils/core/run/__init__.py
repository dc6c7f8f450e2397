"""The owner of the run folder: its layout, its records, models and checkpoints, cache keys, and the one decision."""
