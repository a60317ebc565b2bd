"""What is particular to families from before Llama, to Apertus and to DBRX: positions that a table
has, masks among the weights, what files lack, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from family_models import CONTEXT, described, metadata_of, shapes, write_family_model
from gguf_writer import write_gguf
from hf_folder import safetensors_bytes, tokenizer, write_json
from tiny_model import vocabulary_tokens

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

EXACT = {"backend": "numpy", "kv_type": "f32", "activations": "f32"}
TOKENS = np.random.default_rng(3).integers(0, 160, 30).tolist()


def refusal(architecture: str, **metadata: object) -> str:
    """What is said of a file with these keys and with the tensors of a valid one."""
    entries = metadata_of(architecture)
    tensors = shapes(architecture, entries)
    changed = {f"{architecture}.{key.replace('__', '.')}": each for key, each in metadata.items()}
    file = described(entries | changed, tensors)
    with pytest.raises(FormatError) as error:
        check_tensors(file, load_model(file))
    return str(error.value)


def write_folder(folder: Path, config: dict[str, object], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    table = {name: ("F32", values.astype("<f4")) for name, values in tensors.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(table))
    write_json(folder / "config.json", {"vocab_size": len(vocabulary_tokens())} | config)
    write_json(folder / "tokenizer.json", tokenizer())
    return folder


@pytest.mark.parametrize("architecture", ["gpt2", "starcoder"])
def test_a_context_beyond_the_table_of_positions_is_refused(tmp_path, architecture):
    path = write_family_model(tmp_path, architecture)
    with pytest.raises(ValueError, match=f"context is 129; tiny allows at most {CONTEXT} tokens"):
        LayerWiseInferenceEngine(path, context=CONTEXT + 1, **EXACT)


def test_a_table_of_fewer_positions_than_the_context_is_refused():
    said = refusal("gpt2", context_length=2 * CONTEXT)
    assert "tensor position_embd.weight has shape [128, 64]; expected [256, 64]" in said


def test_the_last_position_of_the_table_is_used(tmp_path):
    path = write_family_model(tmp_path, "gpt2")

    def other_end(name: str, values: np.ndarray) -> np.ndarray:
        if name == "position_embd.weight":
            values = values.copy()
            values[-1] = -values[-1]
        return values

    (tmp_path / "other").mkdir()
    other = write_family_model(tmp_path / "other", "gpt2", other_end)
    tokens, found = [1] * CONTEXT, []
    for each in (path, other):
        with LayerWiseInferenceEngine(each, **EXACT) as engine:
            found.append(engine.forward(tokens, last_only=False))
    np.testing.assert_array_equal(found[0][:-1], found[1][:-1])
    assert (found[0][-1] != found[1][-1]).any()


def test_an_embedding_may_have_the_name_of_the_output_alone(tmp_path):
    entries, found = metadata_of("codeshell"), []
    sizes = shapes("codeshell", entries)
    del sizes["output.weight"]
    for name in ("token_embd.weight", "output.weight"):
        random = np.random.default_rng(1)
        specs = [
            (
                each.replace("token_embd.weight", name),
                "f32",
                shape,
                (0.1 * random.standard_normal(shape)).astype(np.float32),
            )
            for each, shape in sizes.items()
        ]
        path = write_gguf(tmp_path / f"{name}.gguf", entries, specs)
        with LayerWiseInferenceEngine(path, **EXACT) as engine:
            found.append(engine.forward(TOKENS, last_only=False))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("n_layers", "alibi"), [(8, 0.0), (40, 8.0)])
def test_baichuan_of_40_layers_has_biases_by_distance(n_layers, alibi):
    entries = metadata_of("baichuan") | {"baichuan.block_count": n_layers}
    model = load_model(described(entries, shapes("baichuan", entries)))
    assert model.config.alibi == alibi
    assert bool(model.rotations) == (alibi == 0.0)


@pytest.mark.parametrize(("length", "opens"), [(1.0, True), (1.05, True), (3.0, False)])
def test_rows_of_baichuan_2s_output_must_have_length_1(length, opens):
    entries = metadata_of("baichuan")
    tensors = shapes("baichuan", entries)
    tensors |= dict.fromkeys(("token_embd.weight", "output.weight"), (125696, 64))
    file = described(entries, tensors)
    rows = np.full((32, 64), length / 8, np.float32).view(np.uint8)
    object.__setattr__(file, "data", lambda name: rows)
    if opens:
        assert load_model(file).config.vocab_size == 125696
    else:
        with pytest.raises(FormatError, match=r"output\.weight has rows that are not of length 1"):
            load_model(file)


FALCON = {
    **{"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 4},
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"alibi": True}, "alibi is 'True'; expected False"),
        ({"parallel_attn": False}, "parallel_attn is 'False'; expected True"),
        ({"activation": "relu"}, "hidden_act is 'relu'; expected 'gelu'"),
        ({"num_kv_heads": 0, "multi_query": False}, "num_kv_heads is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ],
)
def test_a_config_that_asks_for_another_falcon_is_refused(tmp_path, entries, fault):
    folder = write_folder(tmp_path / "model", FALCON | entries, {"lm_head.weight": np.ones((1, 1))})
    with pytest.raises(FormatError, match=fault):
        open_model(folder)


APERTUS = {
    **{"model_type": "apertus", "hidden_size": 8, "num_attention_heads": 1},
    **{"num_hidden_layers": 2, "intermediate_size": 8, "max_position_embeddings": 32},
    **{"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
}


def apertus_numbers(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """Of both layers; changed: those of the second."""
    numbers = {"alpha_p": np.ones(1), "alpha_n": np.ones(1), "beta": np.array(0.5)}
    numbers["eps"] = np.array(-1e-6)
    layers = [
        numbers,
        {key: each for key, each in {**numbers, **changed}.items() if each is not None},
    ]
    return {"model.embed_tokens.weight": np.ones((len(vocabulary_tokens()), 8))} | {
        f"model.layers.{layer}.mlp.act_fn.{name}": values
        for layer, of_layer in enumerate(layers)
        for name, values in of_layer.items()
    }


def test_numbers_of_an_activation_become_metadata(tmp_path):
    tensors = apertus_numbers(alpha_n=np.array([0.25]))
    with open_model(write_folder(tmp_path / "model", APERTUS, tensors)) as file:
        found = file.metadata["xielu.alpha_n"]
        assert not any("act_fn" in name for name in file.tensors)
        same = file.fingerprint()
    np.testing.assert_array_equal(found, np.array([1.0, 0.25], np.float32))
    tensors = apertus_numbers(alpha_n=np.array([0.5]))
    with open_model(write_folder(tmp_path / "other", APERTUS, tensors)) as file:
        assert file.fingerprint() != same


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"beta": None}, r"expected a tensor mlp\.act_fn\.beta in each of 2 layers"),
        ({"alpha_p": np.ones(2)}, r"has shape \[2\]; expected a number of a layer"),
        ({"alpha_p": np.array(np.nan)}, "has values that are no finite numbers"),
    ],
)
def test_numbers_that_are_missing_or_are_none_are_refused(tmp_path, changed, fault):
    folder = write_folder(tmp_path / "model", APERTUS, apertus_numbers(**changed))
    with pytest.raises(FormatError, match=fault):
        open_model(folder)


DBRX = {"model_type": "dbrx", "d_model": 8, "n_heads": 1, "n_layers": 1}


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        ({"moe_num_experts": 4}, r"mlp\.w1' has shape \[6, 8\]; expected rows of 4 matrices"),
        ({"moe_num_experts": 0}, "num_experts is 0"),
        ({"moe_normalize_expert_weights": 2.0}, "moe_normalize_expert_weights is '2.0'"),
        ({"ffn_act_fn": {"name": "gelu"}}, "hidden_act is 'gelu'; expected 'silu'"),
        (3, "ffn_config is no object"),
    ],
)
def test_experts_that_are_not_dbrxs_are_refused(tmp_path, network, fault):
    tensors = {"wte.weight": np.ones((len(vocabulary_tokens()), 8))}
    tensors["blocks.0.ffn.experts.mlp.w1"] = np.ones((6, 8))
    folder = write_folder(tmp_path / "model", DBRX | {"ffn_config": network}, tensors)
    with pytest.raises(FormatError, match=fault):
        open_model(folder)


def test_masks_among_the_weights_are_left_out(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 1, "n_layer": 1, "n_positions": 4}
    mask = np.ones((1, 1, 4, 4))
    tensors = {"wte.weight": np.ones((len(vocabulary_tokens()), 8)), "wpe.weight": np.ones((4, 8))}
    tensors |= {"h.0.attn.bias": mask, "h.0.attn.masked_bias": np.array(-1e4)}
    with open_model(write_folder(tmp_path / "model", config, tensors)) as file:
        assert set(file.tensors) == {"token_embd.weight", "position_embd.weight"}
