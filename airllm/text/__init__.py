"""Text to tokens and back: vocabularies, tokenisers, chat templates, streamed text,
and what an answer is made of.

Knows `util`. It reads the key-value pairs of a model file, whatever the file's format.
"""
