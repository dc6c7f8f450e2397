"""Where in the training data of a run a text stands, word for word."""
