"""Running a model: the walk over its layers, generation, batches, sampling, lookahead.

Knows weights, state and text; not sockets, and not who asks.
"""
