"""What a sequence keeps between tokens: pages of keys and values, recurrent memory, session files.

Knows `util`, graphs and the hybrid ops; not models, weights or text.
"""
