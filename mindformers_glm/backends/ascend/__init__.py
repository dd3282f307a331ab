"""Ascend: MindSpore Transformers' own inference network and operators, behind our engine."""
