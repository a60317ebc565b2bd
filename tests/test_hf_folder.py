"""Hugging Face folders: the same model as the GGUF file, or a refusal by file and fault."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_model
from extension import require_cpp
from family_folders import config_of
from hf_folder import hf_values, safetensors_bytes, write_folder, write_json
from test_model_families import EXACT, TOKENS, error, logits_of
from tiny_model import FAMILIES, Sizes, TinyModel, vocabulary_tokens, write_tiny_model

from airllm.engine.settings import Sampling
from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.hf_rope import position_sections
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return write_tiny_model(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, tiny: TinyModel) -> Path:
    return write_folder(tmp_path / "tiny", tiny)


def refusal(folder: Path) -> str:
    with pytest.raises(FormatError) as error, open_model(folder) as file:
        load_model(file)
    return str(error.value)


def change(path: Path, **entries: object) -> None:
    write_json(path, json.loads(path.read_text()) | entries)


# The same model.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "n_shards"), [("F32", 3), ("BF16", 1), ("F16", 2)])
def test_logits_are_the_references(tmp_path, backend, family, dtype, n_shards):
    sizes = FAMILIES[family]
    model = write_tiny_model(tmp_path, dtype.lower(), sizes=sizes)
    if dtype != "F32":  # norms are written in 16 bit, too
        norms = {n: rounded(v, dtype, sizes) for n, v in model.tensors.items() if v.ndim == 1}
        model = TinyModel(model.path, sizes, model.tensors | norms)
    folder = TinyModel(
        write_folder(tmp_path / "hf", model, dtype=dtype, n_shards=n_shards), sizes, model.tensors
    )
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert error(logits_of(folder, backend, [TOKENS[:40], TOKENS[40:]]), expected) <= EXACT


def rounded(values: np.ndarray, dtype: str, sizes: Sizes) -> np.ndarray:
    """As `dtype` stores them: Gemma's without their 1."""
    less = 1.0 if sizes.arch.startswith("gemma") else 0.0
    kept = (values - less).astype(np.float32)
    if dtype == "BF16":
        return (kept.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64) + less
    return kept.astype(np.float16).astype(np.float64) + less


def test_experts_that_stand_in_one_tensor_are_taken_apart(tmp_path, backend):
    sizes = FAMILIES["qwen3moe"]
    model = write_tiny_model(tmp_path, sizes=sizes)
    folder = write_folder(tmp_path / "hf", model, fused_experts=True)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    actual = logits_of(TinyModel(folder, sizes, model.tensors), backend, [TOKENS])
    assert error(actual, expected) <= EXACT


@pytest.mark.parametrize("by_columns", [False, True])
def test_the_experts_of_qwen3_vl_may_be_stored_by_columns(tmp_path, by_columns):
    """As published folders have them; transformers 5 writes rows. Their shapes tell."""
    sizes = replace(FAMILIES["qwen3moe"], ffn=96)
    model = write_tiny_model(tmp_path, sizes=sizes)
    config = {"model_type": "qwen3_vl_moe", "norm_topk_prob": None}
    folder = write_folder(tmp_path / "hf", model, fused_experts=True, config=config)
    values = hf_values(model, fused_experts=True)
    for name in values:
        if by_columns and "experts" in name:
            values[name] = values[name].swapaxes(1, 2)
    arrays = {name: ("F32", each.astype(np.float32)) for name, each in values.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    actual = logits_of(TinyModel(folder, sizes, model.tensors), "numpy", [TOKENS])
    assert error(actual, expected) <= EXACT


def test_square_experts_of_qwen3_vl_are_refused(tmp_path):
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    config = {"model_type": "qwen3_vl_moe", "norm_topk_prob": None}
    folder = write_folder(tmp_path / "hf", model, fused_experts=True, config=config)
    assert "whether they are stored by rows or by columns" in refusal(folder)


def test_the_sections_of_positions_are_kept_for_llama_cpp(tmp_path):
    """Qwen2.5-VL as published; llama.cpp opens no converted file without them."""
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen2"])
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    config = {"model_type": "qwen2_5_vl", "rope_scaling": rope}
    with open_model(write_folder(tmp_path / "hf", model, config=config)) as file:
        convert(file, tmp_path / "converted.gguf", "f32")
    with open_model(tmp_path / "converted.gguf") as converted:
        assert list(converted.metadata["qwen2vl.rope.dimension_sections"]) == [2, 3, 3, 0]


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"])
def test_folders_of_qwen35_that_do_not_say_their_sections_have_the_usual_ones(model_type):
    found = translate(Metadata("config.json", config_of(model_type))).metadata
    architecture = found["general.architecture"]
    assert list(found[f"{architecture}.rope.dimension_sections"]) == [11, 11, 10, 0]


@pytest.mark.parametrize("model_type", ["gemma4_text", "mimo_v2_flash", "qwen4_exp_text"])
def test_arrays_have_the_types_that_llama_cpp_reads(model_type):
    found = translate(Metadata("config.json", config_of(model_type))).metadata
    arrays = [value for _, value in found.items() if isinstance(value, np.ndarray)]
    assert {array.dtype.name for array in arrays} <= {"int32", "uint64", "bool", "float32"}


@pytest.mark.parametrize("sections", ["2", [], [1] * 5, [2, -1, 3], [2, 3.0, 3], [10**9]])
def test_sections_of_positions_that_make_no_sense_are_refused(sections):
    config = Metadata("config.json", {"rope_parameters": {"mrope_section": sections}})
    with pytest.raises(FormatError, match=r"config.json: mrope_section is no list of up to 4"):
        position_sections(config)


def test_a_tied_head_is_the_embedding(tmp_path, backend):
    model = write_tiny_model(tmp_path, tied=True)
    folder = write_folder(tmp_path / "hf", model)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    actual = logits_of(TinyModel(folder, model.sizes, model.tensors), backend, [TOKENS])
    assert error(actual, expected) <= EXACT


def test_llama_3s_scaling_is_the_papers(tmp_path):
    """Frequencies of waves longer than 32 / 1 positions are divided by 8, of those shorter than
    32 / 4 by 1, and smoothly in between."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    sizes = Sizes()
    model = write_tiny_model(tmp_path, sizes=sizes)
    folder = write_folder(tmp_path / "hf", model, config={"rope_scaling": scaling})
    factors = []
    for i in range(0, sizes.rope_dims, 2):
        wave = 2 * np.pi * sizes.theta ** (i / sizes.rope_dims)
        smooth = (32 / wave - 1) / (4 - 1)
        factors.append(8 if wave > 32 else 1 if wave < 8 else 1 / ((1 - smooth) / 8 + smooth))
    assert len({f for f in factors if 1 < f < 8}) > 0
    expected = reference_model.forward(model.tensors, sizes, TOKENS, rope_factors=np.array(factors))
    actual = logits_of(TinyModel(folder, sizes, model.tensors), "numpy", [TOKENS])
    assert error(actual, expected) <= EXACT


def test_metadata_is_that_of_the_gguf_file(tmp_path):
    for name, sizes in FAMILIES.items():
        place = tmp_path / name
        place.mkdir()
        model = write_tiny_model(place, sizes=sizes)
        with (
            GGUFFile.open(model.path) as gguf,
            open_model(write_folder(place / "hf", model)) as folder,
        ):
            expected, actual = load_model(gguf).config, load_model(folder).config
            for key, value in vars(expected).items():
                if key not in ("name", "rope_interleaved"):
                    near = pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
                    assert getattr(actual, key) == near, key
            assert set(folder.tensors) == set(gguf.tensors)


def test_tokens_and_chats_are_those_of_the_gguf_file(tiny: TinyModel, folder: Path) -> None:
    chat = [{"role": "user", "content": "hello <|im_end|> 12"}]
    with (
        LayerWiseInferenceEngine(tiny.path, backend="numpy") as gguf,
        LayerWiseInferenceEngine(folder, backend="numpy") as hf,
    ):
        for prompt in ("hello world 123  wörld", "<|im_start|>", chat):
            assert hf.tokenize(prompt) == gguf.tokenize(prompt)
        assert hf.tokenizer.eos_ids == gguf.tokenizer.eos_ids
        assert hf.tokenizer.bos_id == gguf.tokenizer.bos_id
        greedy = {"temperature": 0.0, "max_new_tokens": 12}
        assert hf.generate("hello", **greedy).tokens == gguf.generate("hello", **greedy).tokens


def test_a_tensors_bytes_are_in_their_extents(tmp_path):
    """Whoever streams reads them from there, without this package's help."""
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    with open_model(write_folder(tmp_path / "hf", model, n_shards=4)) as file:
        for name, tensor in file.tensors.items():
            raw = b""
            for extent in tensor.extents:
                whole = file.parts[extent.part].path.read_bytes()
                raw += whole[extent.offset : extent.offset + extent.nbytes]
            assert raw == model.tensors[name].astype(np.float32).tobytes()
            assert raw == file.data(name).tobytes()
            assert len(raw) == tensor.nbytes
        assert len(file.tensors["blk.0.ffn_up_exps.weight"].extents) == 6


def test_rows_across_experts_are_read(tmp_path):
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    name = "blk.1.ffn_down_exps.weight"  # [6, 64, 32]
    with open_model(write_folder(tmp_path / "hf", model, n_shards=2)) as file:
        rows = file.read(name, np.empty(10**6, np.uint8), rows=(60, 200))
    expected = model.tensors[name].reshape(-1, 32)[60:200]
    np.testing.assert_array_equal(rows.view(np.float32), expected)


def test_a_float_that_is_not_aligned_in_its_file_is_copied(tmp_path, tiny, backend):
    folder = write_folder(tmp_path / "hf", tiny, dtype="F32")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes(
        (length + 3).to_bytes(8, "little") + raw[8 : 8 + length] + b"   " + raw[8 + length :]
    )
    expected = reference_model.forward(tiny.tensors, tiny.sizes, TOKENS)
    actual = logits_of(TinyModel(folder, tiny.sizes, tiny.tensors), backend, [TOKENS])
    assert error(actual, expected) <= EXACT


def test_a_copy_has_the_same_fingerprint_and_a_changed_tensor_another(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = shutil.copytree(folder, tmp_path / "other")
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1  # the data's first byte
    (other / "model.safetensors").write_bytes(raw)
    change(copy / "tokenizer_config.json", comment="is not part of the model")
    prints = [open_model(path).fingerprint() for path in (folder, copy, other)]
    assert prints[0] == prints[1] != prints[2]


def test_the_language_model_of_one_that_sees_pictures_is_taken(tmp_path):
    sizes = FAMILIES["gemma3"]
    model = write_tiny_model(tmp_path, sizes=sizes, tied=True)
    folder = write_folder(tmp_path / "hf", model)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    arrays = {
        f"language_model.{name}": ("F32", values.astype(np.float32))
        for name, values in hf_values(model).items()
    }
    arrays["vision_tower.vision_model.embeddings.weight"] = "I64", np.zeros((2, 3), np.int64)
    arrays["multi_modal_projector.weight"] = "F32", np.zeros((2, 3), np.float32)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    actual = logits_of(TinyModel(folder, sizes, model.tensors), "numpy", [TOKENS])
    assert error(actual, expected) <= EXACT


def test_rows_of_the_embedding_without_a_token_are_named_and_never_come_from_text(tmp_path):
    model = write_tiny_model(tmp_path)
    padded = np.vstack([model.tensors["token_embd.weight"], np.zeros((3, 64))])
    head = np.vstack([model.tensors["output.weight"], np.zeros((3, 64))])
    wider = {"token_embd.weight": padded, "output.weight": head}
    model = TinyModel(model.path, model.sizes, model.tensors | wider)
    n = len(vocabulary_tokens())
    folder = write_folder(tmp_path / "hf", model, config={"vocab_size": n + 3})
    with LayerWiseInferenceEngine(folder, backend="numpy") as engine:
        assert engine.config.vocab_size == n + 3
        assert max(engine.tokenize(f"[PAD{n}]")) < n


# Refused.


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"model_type": "rwkv"}, "model_type 'rwkv' is not supported; supported: afmoe, "),
        ({"model_type": None}, "model_type is missing"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected 'silu'"),
        (
            {
                "rope_scaling": {
                    **{"rope_type": "dynamic", "factor": 4.0},
                    "original_max_position_embeddings": 8,
                }
            },
            "RoPE scaling 'dynamic'",
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "alpha": 0.5}},
            "the RoPE scaling's alpha is 0.5; expected 1 to 1000000",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is no object"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; expected"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            "quantization_config: quant_method is 'hqq'; supported are fp8",
        ),
        ({"logits_scaling": 8.0}, "logits_scaling asks for something that llama models do not do"),
        ({"num_hidden_layers": 4}, "tensor blk.3.attn_norm.weight is missing"),
        ({"num_hidden_layers": 2}, "tensor blk.2.attn_k.weight has no place in a llama model"),
        ({"hidden_size": "64"}, "hidden_size is the string '64'; expected an integer"),
        ({"vocab_size": 99}, "vocab_size is 99; expected 268"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, tiny, entries, fault):
    folder = write_folder(tmp_path / "hf", tiny, config=entries)
    with pytest.raises(FormatError) as error:
        LayerWiseInferenceEngine(folder, backend="numpy")
    assert str(error.value).startswith(str(folder))
    assert fault in str(error.value)


def test_attention_in_both_directions_is_refused(tmp_path):
    model = write_tiny_model(tmp_path, sizes=FAMILIES["gemma3"])
    off = write_folder(tmp_path / "off", model, config={"use_bidirectional_attention": False})
    open_model(off).close()
    on = write_folder(tmp_path / "on", model, config={"use_bidirectional_attention": True})
    assert "use_bidirectional_attention asks for something" in refusal(on)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_that_are_switched_off_are_no_reason_to_refuse(tmp_path, family):
    model = write_tiny_model(tmp_path, sizes=FAMILIES[family])
    off = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2}
    off |= {"layer_types": ["full_attention"] * 3}
    open_model(write_folder(tmp_path / "hf", model, config=off)).close()
    on = write_folder(tmp_path / "on", model, config=off | {"use_sliding_window": True})
    assert "asks for layers with a window" in refusal(on)


def test_newer_files_name_each_layers_kind(tmp_path):
    sizes = FAMILIES["gemma3"]
    model = write_tiny_model(tmp_path, sizes=sizes)
    types = ["full_attention", *["sliding_attention"] * 6]
    newer = {"layer_types": types, "sliding_window_pattern": None, "rope_theta": None}
    newer |= {"rope_local_base_freq": None}
    newer["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    with open_model(write_folder(tmp_path / "hf", model, config=newer)) as file:
        assert load_model(file).config.windows == (0, *[20] * 6)
        assert file.metadata["gemma3.rope.scaling.factor"] == 8.0
        assert file.metadata["gemma3.rope.freq_base_swa"] == 1e4


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FormatError, match=name):
        open_model(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    with pytest.raises(FormatError, match=r"no Hugging Face model; give the .* tiny\.gguf"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not the JSON that was expected"),
        ("[]", "expected a JSON object, found a list"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\udcff", "not the JSON that was expected"),
        (f'{{"vocab_size": {"9" * 21}}}', "an integer of 21 digits"),
    ],
)
def test_a_config_that_is_no_json_is_refused(folder: Path, text: str, fault: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    message = refusal(folder)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert fault in message


def test_a_config_or_a_template_beyond_all_models_is_refused_before_it_is_read(
    folder: Path,
) -> None:
    for name, limit in (("chat_template.jinja", 2**20), ("config.json", 4 * 2**20)):
        with (folder / name).open("r+b" if (folder / name).exists() else "wb") as file:
            file.truncate(limit + 1)
        message = refusal(folder)
        assert message.startswith(f"{folder / name}: ")
        assert f"at most {limit:,}" in message


def test_a_missing_head_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, tied=True)
    folder = write_folder(tmp_path / "hf", model, config={"tie_word_embeddings": False})
    assert "lm_head.weight is missing, and tie_word_embeddings is not true" in refusal(folder)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    folder = write_folder(tmp_path / "hf", model, n_shards=2)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    file = folder / places.pop(lost)
    change(index, weight_map=places)
    assert f"{file}: tensor {lost!r} is not what" in refusal(folder)
    raw = file.read_bytes().replace(b"experts.2.up_proj", b"experts.7.up_proj")
    file.write_bytes(raw)
    change(index, weight_map=places | {lost.replace("2.up", "7.up"): file.name})
    assert "expert 2 of blk.1.ffn_up_exps.weight is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("places", "fault"),
    [
        ({"w": "../secret.safetensors"}, "no .safetensors file of this folder"),
        ({"w": "/etc/passwd"}, "no .safetensors file of this folder"),
        ({"w": 7}, "no .safetensors file of this folder"),
        ({"w": "model-9.safetensors"}, "model-9.safetensors is missing"),
        ({"w": "model.safetensors"}, "tensor 'lm_head.weight' is not what"),
        ({}, "does not say which file"),
        (None, "does not say which file"),
    ],
)
def test_an_index_that_does_not_fit_the_files_is_refused(folder: Path, places, fault) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    assert fault in refusal(folder)


def test_a_truncated_shard_is_refused_by_its_name(tmp_path: Path, tiny: TinyModel) -> None:
    folder = write_folder(tmp_path / "tiny", tiny, n_shards=3)
    shard = sorted(folder.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    message = refusal(folder)
    assert message.startswith(f"{shard}: ")
    assert "it is truncated or damaged" in message


def test_a_type_that_is_no_float_is_refused(tmp_path: Path, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype": "F32"', b'"dtype": "I32"', 1))
    assert "is of type I32; supported are F32, F16, BF16" in refusal(folder)


def test_weights_of_pytorch_alone_say_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "save_pretrained" in refusal(folder)


def test_the_configs_defaults_are_those_of_transformers() -> None:
    """A Gemma 3 of 4 billion parameters says this much."""
    from airllm.models.opening import translate
    from airllm.util.metadata import Metadata

    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = translate(Metadata("config.json", {"model_type": "gemma3", "text_config": text}))
    assert config.tied
    found = config.metadata
    assert found["gemma3.attention.head_count"] == 8
    assert found["gemma3.attention.key_length"] == 256
    assert found["gemma3.rope.freq_base"] == 1e6
    assert found["gemma3.rope.freq_base_swa"] == 1e4
    assert found["gemma3.vocab_size"] == 262208
    assert found["gemma3.attention.scale"] == 256**-0.5


def test_the_folder_says_how_to_sample(folder: Path) -> None:
    settings = {"temperature": 0.6, "top_k": 20, "do_sample": True, "repetition_penalty": 1.05}
    write_json(folder / "generation_config.json", {**settings, "top_p": "high", "min_p": None})
    with LayerWiseInferenceEngine(folder, backend="numpy") as engine:
        assert engine.sampling == Sampling(temperature=0.6, top_k=20, repeat_penalty=1.05)
