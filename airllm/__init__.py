"""Language models on ordinary CPUs: layer by layer, in the memory you grant."""

__version__ = "0.1.0"
