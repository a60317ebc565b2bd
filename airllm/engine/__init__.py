"""Runs a model: the forward pass, generation, batches, sampling, lookahead.

Knows weights, state and text; not sockets, servers or the command line.
"""
