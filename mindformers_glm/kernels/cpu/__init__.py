"""The operators on a CPU: a C++ library (csrc), opened by path, and its MindSpore wrappers."""
