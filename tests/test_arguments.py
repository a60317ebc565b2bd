"""Arguments from Python may be anything: each is taken as the number it is, or refused by name."""

import argparse
import decimal
import fractions
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_model import write_tiny_model

from airllm.backends import load_backend
from airllm.cli import values
from airllm.engine.sampling import Sampler
from airllm.engine.settings import Limits, Sampling
from airllm.graph.rewrite import fusion_wanted
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.numpy_ops import cpu_budget
from airllm.util.arguments import check_choice, check_count, check_number
from airllm.util.shown import shown
from airllm.weights.budget import MOST_BYTES, granted_bytes, parse_bytes

HUGE = 10**5000  # more digits than Python writes


NUMBERS = [0, -1, 3, 2**31, 2**63, 2**64, HUGE, -HUGE, 0.5, 1e-320, 1e308, math.nan, math.inf]
NUMBERS += [np.int8(3), np.float16(0.5), np.bool_(True), decimal.Decimal(3), fractions.Fraction(7)]


class Three:
    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), Three(), np.array(3)])
def test_a_count_is_any_kind_of_integer(value: Any) -> None:
    found = check_count("n", value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, "3", None, [3], np.array([3, 4])])
def test_a_count_is_no_other_thing(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^n is .*; expected an integer of at least 1"):
        check_count("n", value)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.float16(0.5), decimal.Decimal("0.5"), fractions.Fraction(1, 2)],
)
def test_a_number_is_any_kind_of_number(value: Any) -> None:
    found = check_number("x", value, 0.0, 1.0, "0 to 1")
    assert found == 0.5
    assert type(found) is float


@pytest.mark.parametrize("value", [True, np.bool_(True), "0.5", b"1", None, 1j, np.array([0.5])])
def test_a_number_is_no_other_thing(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^x is .*; expected a number, 0 to 1"):
        check_number("x", value, 0.0, 1.0, "0 to 1")


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repeat_penalty"])
@pytest.mark.parametrize(
    "value", [10**400, HUGE, -HUGE, math.nan, math.inf, decimal.Decimal("sNaN")], ids=range(6)
)
def test_a_number_that_no_float_holds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .{{1,60}}; expected") as error:
        Sampling(**{name: value})
    assert not isinstance(error.value, OverflowError)


def test_settings_are_kept_as_pythons_own_numbers() -> None:
    found = Sampling(np.float32(0.5), np.int64(3), decimal.Decimal("0.5"), 0, 1, np.uint8(7))  # type: ignore[arg-type]
    kept = [type(value) for value in vars(found).values()]
    assert kept[:6] == [float, int, float, float, float, int]
    limits = Limits(Three(), keep=np.int8(-1))  # type: ignore[arg-type]
    assert (limits.max_new_tokens, limits.keep) == (3, -1)
    assert type(limits.max_new_tokens) is type(limits.keep) is int


@pytest.mark.parametrize("penalty", [1e-320, 1e-300, 1e300, 1e308])
@pytest.mark.filterwarnings("error")
def test_a_penalty_of_any_size_still_chooses_a_token(penalty: float) -> None:
    logits = np.array([0.0, -2.0, 3.0, 1.0], np.float32)
    token = Sampler(Sampling(temperature=0, repeat_penalty=penalty)).sample(logits, [0, 1, 2])
    assert token == (2 if penalty < 1 else 3)


@pytest.mark.parametrize(
    ("keep", "has_bos", "kept"), [(99, False, 5), (-1, False, 5), (3, False, 3), (0, True, 1)]
)
def test_no_more_is_kept_than_the_prompt_has(keep: int, has_bos: bool, kept: int) -> None:
    limits = Limits(1, on_full="shift", keep=keep)
    assert limits.for_prompt(5, has_bos, 50).keep == kept


def test_a_choice_is_a_text() -> None:
    for value in (HUGE, None, ["a"], np.array(["a"]), "b"):
        with pytest.raises(ValueError, match=r"^how is .*; expected 'a'$"):
            check_choice("how", value, ["a"])


def test_a_message_shows_a_value_in_bounded_length() -> None:
    values = [HUGE, [HUGE], "x" * 10**6, ["x"] * 10**6, dict.fromkeys(range(10**4), "y" * 99)]
    assert all(len(shown(value)) < 1000 for value in values)
    assert shown(HUGE) == "an integer of 16,610 bits"


@pytest.mark.parametrize("threads", [0, -1, 1025, HUGE], ids=range(4))
def test_threads_that_no_machine_has_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=r"^threads is .*; expected at (least 1|most 1024)"):
        load_backend("numpy", threads)


@pytest.mark.parametrize("value", [1, "x", HUGE, math.nan], ids=range(4))
def test_fusion_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^fusion is .*; expected True or False"):
        fusion_wanted(value)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerWiseInferenceEngine]:
    path = write_tiny_model(tmp_path_factory.mktemp("model")).path
    with LayerWiseInferenceEngine(path, backend="numpy") as opened:
        yield opened


ANYTHING = [*NUMBERS, None, True, "x", b"x", [1], {}, object(), Three(), 1j, np.array([3])]
ARGUMENTS = ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed"]
ARGUMENTS += ["stop", "on_full", "keep"]


@pytest.mark.parametrize("name", [*ARGUMENTS, "lookahead", "batch"])
def test_an_argument_of_the_engine_may_be_anything(
    engine: LayerWiseInferenceEngine, name: str
) -> None:
    """It answers, or names the argument."""
    for value in ANYTHING:
        how = {"max_new_tokens": 2, name: value}
        if name != "batch":
            assert refused_as(lambda how=how: engine.generate("a", **how)) in (None, name)
            assert refused_as(lambda how=how: list(engine.stream("a", **how))) in (None, name)
        if name != "lookahead":
            assert refused_as(lambda how=how: engine.generate_batch(["a"], **how)) in (None, name)


def refused_as(call: Callable[[], object]) -> str | None:
    """The first word of a refusal; None for an answer."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error).split()[0] if len(str(error)) < 300 else str(error)
    return None


# Sizes.


def test_a_budget_beyond_any_machine_is_as_good_as_none() -> None:
    assert parse_bytes("9" * 400 + "GiB") == parse_bytes("1" + "0" * 30) == MOST_BYTES
    assert granted_bytes(HUGE) == MOST_BYTES
    assert granted_bytes(np.int64(3 << 30)) == 3 << 30  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["1e400GiB", "nanGB", "-1", "0", "0.5", "inf", "", "9" * 9999 + "x"]
)
def test_what_is_no_size_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; expected a number and a unit") as error:
        parse_bytes(text)
    assert len(str(error.value)) < 200


# The command line, and the environment.


@pytest.mark.parametrize("text", ["1e999", "1" * 400, "-1e999", "nan", "1" * 9999, "0x1", "①"])
@pytest.mark.parametrize("kind", [values.not_negative, values.above_zero, values.share])
def test_an_option_that_is_no_finite_number_is_a_usage_error(kind: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["1e3", "1.0", "", "9" * 5000, "-" + "9" * 400])
@pytest.mark.parametrize("kind", [values.positive, values.count, values.count_or_all])
def test_an_option_that_is_no_count_is_a_usage_error(kind: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert len(str(error.value)) < 200


def test_a_large_count_is_one() -> None:
    assert values.positive("99999999999999999999") == 99999999999999999999


def test_any_number_of_blas_threads_in_the_environment_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "9" * 5000)
    found = cpu_budget()
    assert found["chosen"] == found["affinity"]
    assert len(found["reason"]) < 200
