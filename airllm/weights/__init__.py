"""A model's weights: the memory budget, which weights stay in memory, which are streamed.

Knows models, backends, formats and the KV cache; not text.
"""
