"""The version of the package, which setup.py and pyproject.toml read here."""

__version__ = "0.1.0"
