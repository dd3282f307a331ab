"""Operators: `reference.py` defines them in NumPy, `cpu/` implements them in C++."""
