"""Models that do not fit together are refused by name before anything is computed."""

import dataclasses
import importlib
import pkgutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_writer import write_gguf
from tiny_model import FAMILIES, Sizes, write_tiny_model

from airllm import models
from airllm.formats.gguf import FormatError, GGUFFile
from airllm.graph.builder import GraphBuilder
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import FAMILIES as KNOWN
from airllm.models import ModelConfig, load_model
from airllm.models.config import LayerConfig
from airllm.weights.layer_weights import check_tensors


def refusal(tmp_path, **changes) -> str:
    """What opening a tiny model with these changes says, without the file's name."""
    model = write_tiny_model(tmp_path, **changes)
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        LayerWiseInferenceEngine(model.path, backend="numpy")
    assert time.process_time() - start < 1.0
    file, _, message = str(caught.value).partition(": ")
    assert file == str(model.path)
    return message


def config_of(tmp_path, **changes) -> ModelConfig:
    with GGUFFile.open(write_tiny_model(tmp_path, **changes).path) as gguf:
        return load_model(gguf).config


# ---- what is read --------------------------------------------------------------------------------


def test_the_configuration_is_the_files(tmp_path):
    assert config_of(tmp_path) == ModelConfig(
        architecture="llama",
        name="tiny",
        vocab_size=268,
        hidden_size=64,
        intermediate_size=96,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        norm_eps=float(np.float32(1e-5)),
        context_length=96,
        rope_dims=16,
        tied_embeddings=False,
        layers=(LayerConfig(),) * 3,
        attention_scale=0.25,
        rope_interleaved=True,
    )


def test_each_family_is_in_the_table_with_all_its_architectures():
    found = {}
    for module in pkgutil.iter_modules(models.__path__, "airllm.models."):
        family = getattr(importlib.import_module(module.name), "FAMILY", None)
        if family is not None:
            found |= dict.fromkeys(family.architectures, family)
    assert dict(KNOWN) == found


def test_keys_that_files_may_leave_out_have_defaults(tmp_path):
    absent = [
        "general.name",
        "llama.vocab_size",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
    ]
    sizes = Sizes(n_kv_heads=4)
    config = config_of(tmp_path, sizes=sizes, metadata=dict.fromkeys(absent))
    assert (config.name, config.vocab_size) == ("tiny", 268)
    assert (config.n_kv_heads, config.head_dim, config.rope_dims) == (4, 16, 16)


def family_config(tmp_path, family: str, **metadata) -> ModelConfig:
    """Of a tiny model of that family; metadata without the architecture's name in front."""
    sizes = FAMILIES[family]
    keys = {f"{sizes.arch}.{key}": value for key, value in metadata.items()}
    return config_of(tmp_path, sizes=sizes, metadata=keys)


def test_a_llamas_window_is_that_of_all_its_layers(tmp_path):
    window = {"llama.attention.sliding_window": 40}
    config = config_of(tmp_path, metadata=window)
    assert config.windows == (40, 40, 40)
    assert config.context_length == 96


def test_every_second_layer_of_gemma_2_has_a_window(tmp_path):
    assert family_config(tmp_path, "gemma2").windows == (20, 0, 20, 0)


def test_every_sixth_layer_of_gemma_3_has_no_window(tmp_path):
    assert family_config(tmp_path, "gemma3").windows == (20, 20, 20, 20, 20, 0, 20)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (3, (20, 20, 0, 20)),
        (1, (0, 0, 0, 0)),
        (np.array([True, False, False, True]), (20, 0, 0, 20)),
    ],
    ids=["period", "no window", "each layer"],
)
def test_a_file_may_say_which_layers_have_a_window(tmp_path, pattern, windows):
    config = family_config(tmp_path, "gemma2", **{"attention.sliding_window_pattern": pattern})
    assert config.windows == windows


def test_a_pattern_of_another_number_of_layers_is_refused(tmp_path):
    key = "gemma2.attention.sliding_window_pattern"
    pattern = {key: np.array([True, False])}
    said = refusal(tmp_path, sizes=FAMILIES["gemma2"], metadata=pattern)
    assert said == f"{key} has 2 entries; expected 4, one for each layer"


def test_gemma_2_has_its_window_and_caps_where_the_file_is_silent(tmp_path):
    names = ["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"]
    config = family_config(tmp_path, "gemma2", **dict.fromkeys(names))
    assert config.windows == (4096, 0, 4096, 0)
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)


def test_the_27b_gemma_scales_its_scores_by_its_width_the_others_by_their_heads(tmp_path):
    sizes = FAMILIES["gemma2"]
    assert family_config(tmp_path, "gemma2").attention_scale == 24**-0.5
    large = config_of(tmp_path, sizes=dataclasses.replace(sizes, n_layers=46, hidden=36))
    assert large.attention_scale == (36 / 4) ** -0.5


def test_a_file_may_say_what_gemma_scales_its_scores_by(tmp_path):
    assert family_config(tmp_path, "gemma3", **{"attention.scale": 0.5}).attention_scale == 0.5


def test_a_mixture_of_experts_says_how_many_and_how_large_they_are(tmp_path):
    config = family_config(tmp_path, "qwen3moe", expert_weights_norm=False)
    assert (config.n_experts, config.n_experts_used, config.intermediate_size) == (6, 2, 32)
    assert not config.router.normalized


def test_the_experts_size_is_a_share_of_the_feed_forward_length_unless_said(tmp_path):
    sizes = {"expert_feed_forward_length": None, "feed_forward_length": 64}
    assert family_config(tmp_path, "qwen3moe", **sizes).intermediate_size == 32


@pytest.mark.parametrize(
    ("family", "key", "value", "fault"),
    [
        ("qwen3moe", "expert_count", None, "expert_count is missing from the metadata"),
        ("qwen3moe", "expert_used_count", 7, "expert_used_count is 7; expected 1 to 6"),
        ("qwen3moe", "expert_gating_func", 3, "expert_gating_func is 3; expected 1 (softmax), 2"),
        ("qwen3moe", "expert_weights_scale", -2.5, "expert_weights_scale is -2.5; expected it"),
        ("qwen3moe", "expert_group_count", 4, "expert_group_count is 4; expected groups that 6"),
        ("qwen3", "expert_count", 8, "expert_count asks for something that qwen3 models"),
        ("qwen2", "attention.sliding_window", 8, "sliding_window asks for something that qwen2"),
        ("gemma2", "final_logit_softcapping", -3.0, "softcapping is -3.0; expected at least"),
        ("gemma3", "attn_logit_softcapping", 50.0, "asks for something that gemma3 models here"),
        ("gemma3", "attention.scale", -1.0, "scale is -1.0; expected it above 0"),
        ("gemma3", "rope.freq_base_swa", 0.5, "freq_base_swa is 0.5; expected at least 1"),
    ],
)
def test_a_familys_own_keys_are_checked_too(tmp_path, family, key, value, fault):
    sizes = FAMILIES[family]
    assert fault in refusal(tmp_path, sizes=sizes, metadata={f"{sizes.arch}.{key}": value})


# ---- metadata that is wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_key_is_refused_by_name(tmp_path, key):
    assert refusal(tmp_path, metadata={key: None}) == f"{key} is missing from the metadata"


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("block_count", "three", "the string 'three'; expected an integer"),
        ("block_count", 3.0, "float 3.0; expected an integer"),
        ("block_count", True, "bool True; expected an integer"),
        ("attention.head_count", [4, 4, 4], "an array of 3 uint32; expected an integer"),
        ("attention.layer_norm_rms_epsilon", "tiny", "the string 'tiny'; expected a number"),
        ("rope.freq_base", [1.0, 2.0], "an array of 2 float32; expected a number"),
        ("rope.scaling.type", 4, "int 4; expected a string"),
    ],
)
def test_a_value_of_another_type_is_refused_with_key_and_value(tmp_path, key, value, fault):
    assert refusal(tmp_path, metadata={f"llama.{key}": value}) == f"llama.{key} is {fault}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("block_count", 0, "1 to 4096"),
        ("block_count", 2**31, "1 to 4096"),
        ("block_count", -1, "1 to 4096"),
        ("context_length", 0, "1 to 16777216"),
        ("context_length", 2**40, "1 to 16777216"),
        ("embedding_length", 0, "1 to 1048576"),
        ("feed_forward_length", 2**63, "1 to 1048576"),
        ("attention.head_count", 0, "1 to 4096"),
        ("attention.head_count_kv", 0, "1 to 4096"),
        ("attention.key_length", 577, "1 to 576"),
        ("rope.dimension_count", 17, "2 to 16"),
        ("rope.dimension_count", 0, "2 to 16"),
    ],
)
def test_a_count_out_of_range_is_refused_with_key_and_value(tmp_path, key, value, expected):
    said = refusal(tmp_path, metadata={f"llama.{key}": value})
    assert said == f"llama.{key} is {value}; expected {expected}"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"attention.head_count_kv": 3}, "head_count_kv is 3; expected a divisor of"),
        ({"attention.head_count_kv": 8}, "head_count_kv is 8; expected a divisor of"),
        (
            {"attention.key_length": None, "attention.head_count": 5, "attention.head_count_kv": 5},
            "head_count is 5; expected a divisor of llama.embedding_length, 64",
        ),
        ({"attention.value_length": 8}, "value_length is 8; expected 16, the keys' length"),
        ({"attention.layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0; expected it between 0 and 1"),
        ({"attention.layer_norm_rms_epsilon": np.nan}, "epsilon is nan; expected a finite number"),
        ({"rope.dimension_count": 15}, "dimension_count is 15; expected it even"),
        ({"rope.freq_base": 0.0}, "freq_base is 0.0; expected at least 1"),
        ({"rope.freq_base": np.inf}, "freq_base is inf; expected a finite number"),
        ({"rope.scaling.factor": -2.0}, "rope.scaling.factor is -2.0; expected at least 1"),
        ({"attention.causal": False}, "attention.causal is False; expected True"),
        ({"vocab_size": 300}, "vocab_size is 300; expected 268, the rows of token_embd.weight"),
    ],
)
def test_values_that_contradict_each_other_or_sense_are_refused(tmp_path, changes, fault):
    metadata = {f"llama.{key}": value for key, value in changes.items()}
    assert fault in refusal(tmp_path, metadata=metadata)


def test_a_vocabulary_that_is_not_the_embeddings_is_refused(tmp_path):
    said = refusal(tmp_path, metadata={"tokenizer.ggml.tokens": ["a", "b"]})
    assert (
        said == "tokenizer.ggml.tokens has 2 entries; expected 268, the rows of token_embd.weight"
    )


# ---- what is not implemented ---------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones(tmp_path):
    said = refusal(tmp_path, metadata={"general.architecture": "rwkv6"})
    assert said == "the architecture 'rwkv6' is not supported; supported: " + ", ".join(
        sorted(KNOWN)
    )


@pytest.mark.parametrize("scaling", ["dynamic", "su", ""])
def test_a_rope_scaling_that_is_not_implemented_is_refused_by_name(tmp_path, scaling):
    said = refusal(tmp_path, metadata={"llama.rope.scaling.type": scaling})
    assert said.startswith(f"llama.rope.scaling.type is {scaling!r}; ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.leading_dense_block_count", 1),
        ("llama.attention.temperature_scale", 0.1),
        ("llama.logit_scale", 8.0),
    ],
)
def test_a_key_that_would_change_the_arithmetic_is_refused_not_ignored(tmp_path, key, value):
    assert refusal(tmp_path, metadata={key: value}).startswith(f"{key} asks for something")


def test_such_a_key_that_is_zero_or_false_asks_for_nothing(tmp_path):
    off = {"llama.expert_count": 0, "llama.rope.scaling.yarn_log_multiplier": 0.0}
    assert config_of(tmp_path, metadata=off).n_layers == 3


# ---- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.2.ffn_up.weight"],
)
def test_a_missing_tensor_is_refused_by_name(tmp_path, name):
    assert refusal(tmp_path, tensors={name: None}) == f"tensor {name} is missing"


def test_layers_that_the_metadata_promises_must_be_there(tmp_path):
    said = refusal(tmp_path, metadata={"llama.block_count": 4096})
    assert said == "tensor blk.3.attn_norm.weight is missing"


def test_layers_that_the_metadata_does_not_know_are_refused(tmp_path):
    said = refusal(tmp_path, metadata={"llama.block_count": 2})
    assert said == "tensor blk.2.attn_k.weight has no place in a llama model"


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (64,), (4096,), (1, 64, 64), (2, 32, 64)])
def test_a_tensor_of_another_shape_is_refused_with_both(tmp_path, shape):
    name = "blk.1.attn_q.weight"
    tensor = (name, "f32", shape, np.zeros(shape, np.float32))
    said = refusal(tmp_path, tensors={name: tensor})
    assert said.startswith(f"tensor {name} has shape {list(shape)}; expected [64, 64]")


def test_a_quantised_norm_is_refused(tmp_path):
    name = "blk.0.attn_norm.weight"
    tensor = (name, "q8_0", (64,), np.zeros(68, np.uint8))
    said = refusal(tmp_path, tensors={name: tensor})
    assert said == f"tensor {name} is q8_0; expected one of f32, f16, bf16"


def test_quantised_biases_of_experts_are_refused(tmp_path):
    data = np.zeros((4, 34), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {}, [("blk.0.up.bias", "q8_0", (4, 32), data)])
    g = GraphBuilder("layer")
    x = g.external("x", 2 * 32)
    g.expert_bias(x, g.external("route", 4), g.weight("up.bias", 4, 32), out=x)
    none = SimpleNamespace(name="none", weights=(), roles={})
    layer = SimpleNamespace(graph=g.build())
    config = SimpleNamespace(left_out=range(0), idle_tensors=frozenset(), n_stored_layers=1)
    graphs = {"embed": none, "head": none, "next_head": None, "kinds": [layer]}
    model = SimpleNamespace(config=config, kind_of_layer=[0], **graphs)
    with GGUFFile.open(path) as gguf, pytest.raises(FormatError, match="q8_0; expected one of f32"):
        check_tensors(gguf, model)


def test_a_bias_that_one_layer_has_and_another_lacks_is_refused(tmp_path):
    name = "blk.0.attn_q.bias"
    said = refusal(tmp_path, tensors={name: (name, "f32", (64,), np.zeros(64, np.float32))})
    assert said == "tensor blk.1.attn_q.bias is missing"


def test_a_tensor_without_a_place_is_refused_not_ignored(tmp_path):
    name = "blk.0.attn_q_norm.weight"
    said = refusal(tmp_path, tensors={name: (name, "f32", (64,), np.zeros(64, np.float32))})
    assert said == f"tensor {name} has no place in a llama model"


@pytest.mark.parametrize("factors", [np.ones(7), np.zeros(8), np.full(8, np.nan), -np.ones(8)])
def test_rope_factors_that_make_no_sense_are_refused(tmp_path, factors):
    assert "tensor rope_freqs.weight " in refusal(tmp_path, rope_factors=factors)


def test_a_norm_in_half_precision_is_read(tmp_path):
    name = "output_norm.weight"
    half = (name, "f16", (64,), np.ones(64, np.float16))
    model = write_tiny_model(tmp_path, tensors={name: half})
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        assert np.isfinite(engine.forward([1])).all()


# ---- damage --------------------------------------------------------------------------------------


def damaged(raw: bytes, header_bytes: int, rng: np.random.Generator) -> bytes:
    """Up to three places of the header with a flipped bit, a tempting number, or bytes cut out."""
    data = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(header_bytes - 16))
        match rng.integers(3):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + 8] = int(rng.choice([0, 1, 2**32, 2**63 - 1])).to_bytes(8, "little")
            case _:
                del data[at : at + int(rng.integers(1, 9))]
    return bytes(data)


def test_a_damaged_header_gives_an_error_or_a_model_that_runs(tmp_path):
    path = write_tiny_model(tmp_path, "q4_0").path
    raw = path.read_bytes()
    with GGUFFile.open(path) as gguf:
        header_bytes = min(tensor.offset for tensor in gguf.tensors.values())
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(300):
        path.write_bytes(damaged(raw, header_bytes, rng))
        start = time.process_time()
        try:
            with LayerWiseInferenceEngine(path, backend="numpy") as engine:
                assert engine.forward([1, 2]).shape == (268,)
                assert isinstance(engine.tokenize("hello"), list)
        except FormatError as error:
            refusals.append(str(error))
        assert time.process_time() - start < 1.0
    assert 150 < len(refusals) < 300  # both happen
    assert all(refusal.startswith(f"{path}: ") for refusal in refusals)
