"""The CPU: a network of fused C++ operators (csrc) inside a MindSpore graph."""
