"""Next-token heads of Hugging Face folders, beside layers of transformers, which has no heads: the
layer of a head is a layer of another model of the family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp
from hf_case import VOCAB, Case
from hf_cases import CASES
from hf_models import build, require_hf, write_folder

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model

NAMES = ["Qwen3-Next", "Qwen3.5", "Qwen3.5-MoE", "GLM-4.5", "DeepSeek-V3", "DeepSeek-V3.2"]
NAMES += ["GLM-5", "GLM-4.7 Flash", "Ling 3"]
EXACT: dict[str, Any] = {"kv_type": "f32", "activations": "f32"}
CLOSE = 3e-6  # norm of the difference over the norm of the logits
TOKENS = np.random.default_rng(6).integers(0, VOCAB, 31).tolist()
_MTP = {  # Qwen's names
    "eh_proj": "fc",
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "shared_head.norm": "norm",
}


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, np.ndarray]:
    require_hf()
    require_cpp()
    return write_with_head(tmp_path_factory.mktemp("folder"), CASES[request.param])


def write_with_head(folder: Path, case: Case) -> tuple[Path, np.ndarray]:
    """A folder in `folder`, and the logits of what its head guesses after TOKENS."""
    import torch
    from safetensors.torch import load_file, save_file

    model, other = build(case), build(case)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(weight.flip(0))
    write_folder(folder / "model", case, model)
    write_folder(folder / "other", case, other)
    text, of_head = (getattr(each.model, "language_model", each.model) for each in (model, other))
    config = text.config
    types = getattr(config, "layer_types", None) or ["full_attention"]
    n_layers = config.num_hidden_layers
    at = max(i for i in range(n_layers) if types[i % len(types)] != "linear_attention")

    random = np.random.default_rng(2)
    hidden = config.hidden_size
    own = {
        "eh_proj": random.standard_normal((hidden, 2 * hidden)) * (2 * hidden) ** -0.5,
        **{f"{name}norm": random.uniform(0.5, 1.5, hidden) for name in ("e", "h", "shared_head.")},
    }
    own = {name: values.astype(np.float32) for name, values in own.items()}
    weights = folder / "model" / "model.safetensors"
    tensors = load_file(weights)
    before = next(name for name in tensors if "layers.0." in name).partition("layers.0.")[0]
    layer = f"{before}layers.{at}."
    found = {
        name.removeprefix(layer): values
        for name, values in load_file(folder / "other" / "model.safetensors").items()
        if name.startswith(layer)
    }
    for name, values in own.items():
        values = values - 1 if case.plus_one and values.ndim == 1 else values
        found[f"{name}.weight"] = torch.tensor(values)
    if case.arch.startswith("qwen"):
        found = {_of_qwen(name): values for name, values in found.items()}
    else:
        if case.arch == "bailingmoe3":  # has no tables of its own, and another name of the norm
            found["final_layernorm.weight"] = found.pop("shared_head.norm.weight")
        else:
            found["embed_tokens.weight"] = text.embed_tokens.weight.detach().clone()
            found["shared_head.head.weight"] = model.lm_head.weight.detach().clone()
        found = {f"{before}layers.{n_layers}.{k}": v for k, v in found.items()}
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    save_file(tensors | found, weights)

    def norm(x: Any, name: str) -> Any:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps)
        return x * scale * torch.tensor(own[name])

    with torch.no_grad():
        ids = torch.tensor([TOKENS])
        h = text(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        h = torch.cat([torch.zeros(1, 1, hidden), h], 1)
        both = torch.cat([norm(text.embed_tokens(ids), "enorm"), norm(h, "hnorm")], -1)
        x = both @ torch.tensor(own["eh_proj"]).T
        of_head.layers = torch.nn.ModuleList([of_head.layers[at]])
        of_head.config.num_hidden_layers = 1
        of_head.config.layer_types = [types[at % len(types)]]
        of_head.norm = torch.nn.Identity()
        x = of_head(inputs_embeds=x, use_cache=False).last_hidden_state
        logits = model.lm_head(norm(x[:, -1:], "shared_head.norm"))
    return folder / "model", np.asarray(logits[0, 0])


def _of_qwen(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"mtp.{_MTP[stem]}.{suffix}" if stem in _MTP else f"mtp.layers.0.{name}"


def difference(path: Path, expected: np.ndarray, backend: str = "cpp") -> float:
    with LayerWiseInferenceEngine(path, backend=backend, mtp=True, **EXACT) as engine:
        engine.forward(TOKENS[:-1])
        guesser = engine._model.decoder.next_tokens
        assert guesser is not None
        assert guesser.guess(TOKENS, 1) == [int(np.argmax(expected))]
        return float(np.linalg.norm(guesser._logits[0] - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_folders_head_guesses_what_layers_of_transformers_do(folder: Any, backend: str) -> None:
    path, expected = folder
    assert difference(path, expected, backend) <= CLOSE


def test_a_converted_folder_keeps_its_head(folder: Any, tmp_path: Path) -> None:
    path, expected = folder
    with open_model(path) as file:
        convert(file, tmp_path / "model.gguf", "f32")
        n_tensors = len(file.tensors)
    assert difference(tmp_path / "model.gguf", expected) <= CLOSE
    with open_model(tmp_path / "model.gguf") as file:
        assert len(file.tensors) == n_tensors
