"""Writes a tiny random model as a GGUF file: a whole model, vocabulary included, in 0.2 MB.

The tests get the values of its tensors too, worked out here or in reference_blocks.py from the very
numbers that were written, so that nothing that reads GGUF files or unpacks blocks is checked
against itself.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from file_rows import LARGE_BLOCKS, FileRows, decoded, drawn_rows
from gguf_writer import TensorSpec, write_gguf
from reference_blocks import block_bytes, set_scales

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Of a Llama, unless arch says otherwise; the last ones are for the families that have them."""

    arch: str = "llama"
    hidden: int = 64
    ffn: int = 96
    n_layers: int = 3
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    rope_dims: int = 16
    theta: float = 10000.0
    eps: float = 1e-5
    context: int = 96
    window: int = 0  # positions that a token sees, its own included; 0: all
    window_period: int = 0  # of so many layers, the last has no window; 0: all have it
    window_theta: float = 0.0  # of the layers with a window; 0: theta
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    n_experts: int = 0
    n_used: int = 0


# The smallest of each family that shows all that is its own.
FAMILIES = {
    "llama": Sizes(),
    "mistral": Sizes(window=20),
    "qwen2": Sizes("qwen2", eps=1e-6, theta=1e6),
    "qwen3": Sizes("qwen3", eps=1e-6, theta=1e6, head_dim=32, rope_dims=32),
    "qwen3moe": Sizes(
        "qwen3moe", eps=1e-6, theta=1e6, head_dim=32, rope_dims=32, ffn=32, n_experts=6, n_used=2
    ),
    "gemma2": Sizes(
        "gemma2",
        eps=1e-6,
        n_layers=4,
        head_dim=24,
        rope_dims=24,
        window=20,
        window_period=2,
        attention_softcap=5.0,
        final_softcap=3.0,
    ),
    "gemma3": Sizes(
        "gemma3",
        eps=1e-6,
        n_layers=7,
        head_dim=24,
        rope_dims=24,
        window=20,
        window_period=6,
        theta=1e6,
        window_theta=1e4,
    ),
}


# Every matrix is a multiple of 256 wide, as blocks of 256 values need it.
WIDE = Sizes(hidden=256, ffn=512, n_layers=2, head_dim=64, rope_dims=64)


@dataclass(frozen=True)
class TinyModel:
    path: Path
    sizes: Sizes
    tensors: dict[str, np.ndarray]  # float64 values by GGUF name


def write_tiny_model(
    folder: Path,
    type: str = "f32",
    *,
    sizes: Sizes | None = None,
    tied: bool = False,
    types: Mapping[str, str] | None = None,
    rope_factors: np.ndarray | None = None,
    metadata: Mapping[str, object | None] | None = None,
    tensors: Mapping[str, TensorSpec | None] | None = None,
) -> TinyModel:
    """Write `folder`/tiny.gguf.

    type: of the matrices; norms are f32. sizes: None for Sizes(), or WIDE for blocks of 256.
    types: of matrices that have another one, by slot: {"ffn_down": "q6_k"}.
    rope_factors: float32 [rope_dims / 2], as a tensor.
    metadata, tensors: what to put in place of the valid entries, by name; None leaves one out.
    """
    sizes = sizes or (WIDE if type in LARGE_BLOCKS else Sizes())
    vocabulary = vocabulary_tokens()
    rng = np.random.default_rng(5)
    specs: dict[str, TensorSpec | None] = {}
    values: dict[str, np.ndarray] = {}
    for name, shape in _shapes(sizes, len(vocabulary), tied).items():
        slot = name.removesuffix(".weight").split(".")[-1]
        kind = (types or {}).get(slot, type) if len(shape) > 1 else "f32"
        data, values[name] = _random_tensor(rng, kind, shape)
        specs[name] = (name, kind, shape, data)
    if rope_factors is not None:
        name, shape = "rope_freqs.weight", rope_factors.shape
        specs[name] = (name, "f32", shape, rope_factors.astype(np.float32))
    entries = _metadata(sizes, vocabulary) | dict(metadata or {})
    specs |= tensors or {}
    path = write_gguf(
        folder / "tiny.gguf",
        {key: value for key, value in entries.items() if value is not None},
        [spec for spec in specs.values() if spec is not None],
    )
    return TinyModel(path, sizes, values)


def _metadata(sizes: Sizes, vocabulary: list[str]) -> dict[str, object]:
    arch = sizes.arch
    entries: dict[str, object] = {
        "block_count": sizes.n_layers,
        "context_length": sizes.context,
        "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.ffn,
        "attention.head_count": sizes.n_heads,
        "attention.head_count_kv": sizes.n_kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": sizes.eps,
        "rope.freq_base": sizes.theta,
        "rope.dimension_count": sizes.rope_dims,
        "vocab_size": len(vocabulary),
    }
    extras = {
        "attention.sliding_window": sizes.window,
        "attn_logit_softcapping": sizes.attention_softcap,
        "final_logit_softcapping": sizes.final_softcap,
        "rope.freq_base_swa": sizes.window_theta,
        "expert_count": sizes.n_experts,
        "expert_used_count": sizes.n_used,
        "expert_feed_forward_length": sizes.ffn if sizes.n_experts else 0,
    }
    entries |= {key: value for key, value in extras.items() if value}
    return {
        "general.architecture": arch,
        "general.name": "tiny",
        **{f"{arch}.{key}": value for key, value in entries.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def vocabulary_tokens() -> list[str]:
    """Three control tokens, a token for each byte as GPT-2 spells it, and the merges' results."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    byte_tokens = [chr(byte if byte in visible else next(others)) for byte in range(256)]
    return [*SPECIAL, *byte_tokens, *(merge.replace(" ", "") for merge in MERGES)]


def byte_token(byte: int) -> int:
    """The id of the token that is this one byte."""
    return len(SPECIAL) + byte


def _shapes(sizes: Sizes, n_vocab: int, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, sizes.hidden)}
    for i in range(sizes.n_layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in _layer_shapes(sizes).items()}
    shapes["output_norm.weight"] = (sizes.hidden,)
    return shapes if tied else shapes | {"output.weight": (n_vocab, sizes.hidden)}


def _layer_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    hidden, ffn, n_experts = sizes.hidden, sizes.ffn, sizes.n_experts
    q_width, kv_width = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (q_width, hidden),
        "attn_k.weight": (kv_width, hidden),
        "attn_v.weight": (kv_width, hidden),
        "attn_output.weight": (hidden, q_width),
        "ffn_norm.weight": (hidden,),
    }
    if sizes.arch == "qwen2":
        shapes |= {
            "attn_q.bias": (q_width,),
            "attn_k.bias": (kv_width,),
            "attn_v.bias": (kv_width,),
        }
    if sizes.arch in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (sizes.head_dim,), "attn_k_norm.weight": (sizes.head_dim,)}
    if sizes.arch in ("gemma2", "gemma3"):
        shapes |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    if n_experts:
        return shapes | {
            "ffn_gate_inp.weight": (n_experts, hidden),
            "ffn_gate_exps.weight": (n_experts, ffn, hidden),
            "ffn_up_exps.weight": (n_experts, ffn, hidden),
            "ffn_down_exps.weight": (n_experts, hidden, ffn),
        }
    return shapes | {
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }


def _random_tensor(
    rng: np.random.Generator, type: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """A tensor's data as `type` stores it, and its values in float64."""
    if len(shape) == 1:  # a norm's weight, or a bias: about 1
        weight = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return weight, weight.astype(np.float64)
    spread = 2.0 * shape[-1] ** -0.5  # so that activations neither vanish nor explode
    if type == "bf16":
        bits = (spread * rng.standard_normal(shape)).astype("<f4").view("<u4") >> 16
        return bits.astype("<u2"), (bits << 16).view("<f4").astype(np.float64)
    if type in ("f32", "f16"):
        weight = (spread * rng.standard_normal(shape)).astype("<f4" if type == "f32" else "<f2")
        return weight, weight.astype(np.float64)
    blocks = _random_blocks(type, spread)
    n = int(np.prod(shape[:-1]))
    rows = drawn_rows(n, shape[-1], type, blocks, seed=int(rng.integers(2**32)))
    return rows.data, rows.values.reshape(shape)


# What m (or dmin) is when d is 1, so that values are about as often negative as positive.
_CENTRE = {"q4_1": -7.5, "q5_1": -15.5, "q2_k": 1.5, "q4_k": 7.5, "q5_k": 15.5}


@functools.cache
def _random_blocks(type: str, spread: float) -> FileRows:
    """64 blocks of random quants, with scales that give values the standard deviation `spread`."""
    rng = np.random.default_rng(6)
    blocks = rng.integers(0, 256, (64, block_bytes(type)), np.uint8)
    halves = rng.uniform(0.7, 1.3, (64, 1)) * [1.0, _CENTRE.get(type, 0.0)]
    set_scales(blocks, type, halves)
    set_scales(blocks, type, halves * (spread / decoded(blocks, type).values.std()))
    return decoded(blocks, type)
