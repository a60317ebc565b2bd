"""Options of an answer: written once, and the same wherever they are given."""

import argparse
import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

from airllm.cli import options
from airllm.engine.settings import AnswerOptions, Limits, Sampling, settings_of
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.tools.batch_file import SETTINGS

FIELDS = [*fields(Sampling), *fields(Limits)]
DEFAULTS = {field.name: field.default for field in FIELDS}


def test_an_option_is_a_field_of_sampling_or_of_limits_and_has_its_type() -> None:
    assert get_type_hints(AnswerOptions) == {field.name: field.type for field in FIELDS}


def test_options_that_are_not_given_have_their_defaults() -> None:
    assert settings_of() == (Sampling(), Limits())
    sampling, limits = settings_of(top_k=3, stop="x")
    assert (sampling, limits) == (Sampling(top_k=3), Limits(stop="x"))


def test_an_option_that_is_none_is_named_with_those_that_are() -> None:
    with pytest.raises(TypeError, match="no option 'topk'; expected some of temperature, top_k"):
        settings_of(topk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["generate", "stream", "generate_batch", "stream_batch"])
def test_an_engines_signature_shows_each_option_with_its_default(name: str) -> None:
    parameters = inspect.signature(getattr(LayerWiseInferenceEngine, name)).parameters
    shown = {name: parameters[name].default for name in DEFAULTS}
    assert shown == DEFAULTS
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in DEFAULTS)
    assert "options" not in parameters


def test_a_command_lines_options_have_the_same_defaults() -> None:
    parser = argparse.ArgumentParser()
    options.add_answer(parser)
    given = options.answer_options(parser.parse_args([]))
    assert settings_of(**given) == (Sampling(), Limits(stop=[]))
    assert given.keys() == DEFAULTS.keys() - {"keep"}


def test_a_line_of_a_batch_sets_what_concerns_it_alone() -> None:
    assert {
        "temperature": (int, float),
        "top_k": (int,),
        "top_p": (int, float),
        "min_p": (int, float),
        "repeat_penalty": (int, float),
        "seed": (int,),
        "max_new_tokens": (int,),
        "stop": (str,),
    } == SETTINGS


def test_strings_that_end_an_answer_may_be_one() -> None:
    assert Limits(stop="ab").stop_strings == ("ab",)
    assert Limits(stop=["a", "b"]).stop_strings == ("a", "b")
    for empty in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop has an empty string"):
            Limits(stop=empty)
