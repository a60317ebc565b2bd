"""The base of all exceptions that airllm defines."""

__all__ = ["AirllmError"]


class AirllmError(Exception):
    """Something that airllm reports: a faulty file, a full context, a model that cannot be fetched.

    A subclass keeps a built-in exception as a second base where one fits, such as ValueError. A
    wrong argument in Python raises the built-in TypeError or ValueError alone.
    """
