"""Text to tokens and back: vocabularies, tokenisers, chat templates, text as it streams out.

Knows `util`. It reads a file's key-value pairs, whichever format they come from.
"""
