"""Moves outliers of activations into weights before anything is rounded: methods m1 to m5."""
