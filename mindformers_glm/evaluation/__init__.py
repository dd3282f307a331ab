"""Measures what a model's answers are worth, and what quantizing has changed in them."""
