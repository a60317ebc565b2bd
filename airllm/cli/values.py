"""Parsers of the values of options, for argparse's `type`: of numbers, sizes, texts and JSON.

A value that a parser refuses is a usage error (exit status 2).
"""

import argparse
import json
import math

from airllm.util.shown import shown


def positive(text: str) -> int:
    return _integer(text, minimum=1)


def count(text: str) -> int:
    return _integer(text, minimum=0)


def count_or_all(text: str) -> int:
    """-1 is all."""
    return _integer(text, minimum=-1)


def counts(text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]"""
    return [count(item) for item in text.split(",")]


def positives(text: str) -> list[int]:
    return [positive(item) for item in text.split(",")]


def size(text: str) -> int:
    """ "2GiB" -> bytes"""
    from airllm.weights.budget import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def at_least_one(text: str) -> float:
    value = _number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def number(text: str) -> float:
    return _number(text)


def bias(text: str) -> tuple[int, float]:
    """ "15=-1.5" -> (15, -1.5); also -inf"""
    token, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no TOKEN=NUMBER")
    return count(token), -math.inf if value == "-inf" else _number(value)


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def text(value: str) -> str:
    """Python passes a byte that is not UTF-8 as a lone surrogate, which no tokeniser takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return value


def json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text:.60} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text:.60} is no JSON object, as {{...}} is")
    return value


def not_empty(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("the text is empty")
    return text(value)


def _integer(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{shown(value)} is less than {minimum}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:80]} is not a finite number")
    return value
