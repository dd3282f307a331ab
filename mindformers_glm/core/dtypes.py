"""Floating-point types of weights, products and caches, by their Hugging Face names."""

DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
