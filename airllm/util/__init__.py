"""What every other package may use: checks of arguments, errors, progress, the system, a file's
key-value pairs.

Knows nothing of the rest of the package.
"""
