"""Tools that use an engine: perplexity, benchmark, a file of prompts.

Knows the engine through protocols; not the terminal.
"""
