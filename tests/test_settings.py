"""Options of an answer: written once, and the same wherever they are given."""

import argparse
import inspect
import math
from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

from airllm.cli import answer_options
from airllm.engine.settings import AnswerOptions, Limits, Sampling, model_sampling, settings_of
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.tools.batch_jobs import SETTINGS

FIELDS = [*fields(Sampling), *fields(Limits)]
DEFAULTS = {field.name: field.default for field in FIELDS}


def test_an_option_is_a_field_of_sampling_or_of_limits_and_has_its_type() -> None:
    of_fields = {field.name: field.type for field in FIELDS}
    assert get_type_hints(AnswerOptions) == {**of_fields, "max_tokens": int}


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
    answer_options.add_answer(parser)
    given = answer_options.answer_options(parser.parse_args([]))
    assert settings_of(**given) == (Sampling(), Limits(stop=[]))
    # What is not given is as the model's file says.
    assert given.keys() == {"max_new_tokens", "stop", "on_full"}
    names = {action.dest for action in parser._actions}
    assert names - {"help"} == DEFAULTS.keys() - {"keep"}


def test_each_option_of_sampling_can_be_given_on_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    answer_options.add_answer(parser)
    words = (
        "--temperature 0.5 --top-k 7 --top-p 0.6 --min-p 0.1 --repeat-penalty 1.1 --seed 3 "
        "--typical-p 0.7 --presence-penalty -0.2 --frequency-penalty 0.3 --penalty-window -1 "
        "--dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-breaker x "
        "--dry-breaker yz --logit-bias 15=-inf --logit-bias 2=1.5"
    )
    sampling, _ = settings_of(**answer_options.answer_options(parser.parse_args(words.split())))
    assert sampling == Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.6,
        min_p=0.1,
        repeat_penalty=1.1,
        seed=3,
        typical_p=0.7,
        presence_penalty=-0.2,
        frequency_penalty=0.3,
        penalty_window=-1,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_breakers=["x", "yz"],
        logit_bias={15: -math.inf, 2: 1.5},
    )


@pytest.mark.parametrize("value", ["15", "x=1", "3=y", "-1=2", "3=nan"])
def test_a_bias_that_is_none_is_a_usage_error(value: str) -> None:
    parser = argparse.ArgumentParser()
    answer_options.add_answer(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--logit-bias={value}"])


def test_a_models_file_says_how_to_sample_and_arguments_win() -> None:
    metadata = {
        "general.sampling.temp": float(np.float32(0.6)),
        "general.sampling.top_k": 20,
        "general.sampling.penalty_last_n": -1,
    }
    found = model_sampling(metadata)
    assert found == Sampling(temperature=0.6, top_k=20, penalty_window=-1)
    assert settings_of(found, top_k=3)[0] == Sampling(temperature=0.6, top_k=3, penalty_window=-1)
    assert model_sampling({}) == Sampling()


@pytest.mark.parametrize("value", [-1.0, math.nan, "warm", True, [1]])
def test_a_models_setting_that_makes_no_sense_is_not_used(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert model_sampling({"general.sampling.temp": value}) == Sampling()
    assert "general.sampling.temp, which is not used: temperature is" in caplog.text


def test_a_line_of_a_batch_sets_what_concerns_it_alone() -> None:
    assert {
        "temperature": (int, float),
        "top_k": (int,),
        "top_p": (int, float),
        "min_p": (int, float),
        "repeat_penalty": (int, float),
        "seed": (int,),
        "typical_p": (int, float),
        "presence_penalty": (int, float),
        "frequency_penalty": (int, float),
        "penalty_window": (int,),
        "dry_multiplier": (int, float),
        "dry_base": (int, float),
        "dry_allowed_length": (int,),
        "dry_breakers": (str,),
        "logit_bias": (dict,),
        "max_new_tokens": (int,),
        "stop": (str,),
    } == SETTINGS


def test_strings_that_end_an_answer_may_be_one() -> None:
    assert Limits(stop="ab").stop_strings == ("ab",)
    assert Limits(stop=["a", "b"]).stop_strings == ("a", "b")
    for empty in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop has an empty string"):
            Limits(stop=empty)


def test_max_tokens_is_another_name_of_max_new_tokens() -> None:
    assert settings_of(max_tokens=7)[1].max_new_tokens == 7
    assert settings_of(max_tokens=None)[1] == settings_of()[1]  # type: ignore[typeddict-item]
    with pytest.raises(TypeError, match="two names of one option"):
        settings_of(max_tokens=7, max_new_tokens=7)
