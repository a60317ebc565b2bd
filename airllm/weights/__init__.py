"""A model's weights: how much memory there is, which weights stay in it, which are streamed.

Knows models, backends, formats and what a sequence keeps; not text.
"""
