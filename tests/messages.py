"""What an error message must say."""

import re
from collections.abc import Callable

import pytest

from airllm.util.metadata import FormatError


def check_message(ops, call, error, says):
    """call(ops) raises `error` with a message that has the parts of `says` in this order."""
    with pytest.raises(error) as caught:
        call(ops)
    message = str(caught.value)
    pattern = ".*".join(re.escape(part) for part in says)
    assert re.search(pattern, message, re.DOTALL), f"{message!r} does not say {says}"


def check_refused(call: Callable[[], object], said: str) -> None:
    """call() raises a FormatError whose message has the words `said`."""
    with pytest.raises(FormatError) as refused:
        call()
    assert said in str(refused.value)
