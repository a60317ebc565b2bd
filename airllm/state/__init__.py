"""What a sequence keeps between tokens: keys and values, and a session's file of them.

Knows `util` and the hybrid ops; not models, weights or text.
"""
