"""What is done with an engine beside answering: perplexity, speed, a file of prompts.

Knows the engine through protocols; not the terminal.
"""
