"""Graphs of operations over named buffers: building, checking and rewriting them.

Knows `util` and the hybrid ops; not models, files, or what runs a graph.
"""
