"""A model's configuration, read from GGUF metadata; nothing in it is believed unchecked.

Keys and their meanings are llama.cpp's. A default is what llama.cpp assumes for a file whose
converter did not write that key yet.
"""

from dataclasses import dataclass

import numpy as np

from airllm.formats.model_file import ModelFile
from airllm.util.metadata import Metadata

# These limits are far above every known model (the longest contexts are 10 million tokens, the
# widest layers about 100,000), so that later arithmetic cannot overflow. check_tensors in
# airllm.weights.layer_weights checks that the file's tensors have the sizes the graphs need.
_MAX_CONTEXT = 2**24
_MAX_WIDTH = 2**20
_MAX_LAYERS = 2**12
_MAX_HEADS = 2**12
_MAX_HEAD_DIM = 256  # the attention kernels'
_MAX_EXPERTS = 2**12

# Keys with these prefixes change the arithmetic. An unknown key among them is refused: if it were
# ignored, the model would run and give wrong answers. A value of 0 or false turns a feature off.
_ARITHMETIC_KEYS = (
    *("attention.", "rope.", "expert", "moe", "attn_", "final_"),
    *("logit_scale", "embedding_scale", "residual_"),
)
_KNOWN_KEYS = frozenset(
    [
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
    ]
)


@dataclass(frozen=True)
class _Family:
    """Further keys that an architecture's files may have, and its values where a key is missing."""

    keys: frozenset[str] = frozenset()
    window: int = 0
    window_period: int = 0  # every such layer sees all positions; 0: every layer has the window
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    # The number of layers of the 27B model, which scales scores by hidden_size / n_heads in place
    # of head_dim. No key says so; llama.cpp recognises that model by its layers, too.
    layers_of_27b: int | None = None
    has_experts: bool = False


_GEMMA_KEYS = frozenset(
    ["attention.scale", "attention.sliding_window", "attention.sliding_window_pattern"]
)
_EXPERT_KEYS = frozenset(
    [
        "expert_count",
        "expert_feed_forward_length",
        "expert_gating_func",
        "expert_used_count",
        "expert_weights_norm",
        "expert_weights_scale",
    ]
)
_FAMILIES = {
    "llama": _Family(frozenset(["attention.sliding_window"])),
    "qwen3moe": _Family(_EXPERT_KEYS, has_experts=True),
    "gemma2": _Family(
        _GEMMA_KEYS | {"attn_logit_softcapping", "final_logit_softcapping"},
        window=4096,
        window_period=2,
        attention_softcap=50.0,
        final_softcap=30.0,
        layers_of_27b=46,
    ),
    "gemma3": _Family(
        _GEMMA_KEYS | {"final_logit_softcapping", "rope.freq_base_swa"},
        window_period=6,
        layers_of_27b=62,
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a decoder-only transformer is made of."""

    architecture: str  # "llama": the family's file in airllm.models
    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of the feed-forward network, or of an expert
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int  # tokens that the model was trained for
    rope_dims: int  # dimensions of a head that rotate, from the first on
    tied_embeddings: bool  # the output matrix is the embedding
    windows: tuple[int, ...]  # of each layer: positions that a token sees, its own too; 0: all
    attention_scale: float  # what q k^T is multiplied by
    attention_softcap: float = 0.0  # scores are capped smoothly to +-softcap; 0: they are not
    final_softcap: float = 0.0  # logits likewise
    n_experts: int = 0
    n_experts_used: int = 0  # by each token
    normalized_experts: bool = True  # the shares of a token's experts sum to 1
    # Which dimensions of a head rope rotates as a pair. True: neighbours, for GGUF files of Llama,
    # whose converter reorders the rows of Q and K. False: j and j + rope_dims / 2.
    rope_interleaved: bool = True

    @classmethod
    def from_gguf(cls, gguf: ModelFile) -> "ModelConfig":
        """Read and check. FormatError names the file, the key and its value."""
        metadata = gguf.metadata
        arch = metadata.text("general.architecture")
        family = _FAMILIES.get(arch, _Family())
        _refuse_unknown_keys(metadata, arch, family)
        hidden_size = metadata.integer(f"{arch}.embedding_length", low=1, high=_MAX_WIDTH)
        n_layers = metadata.integer(f"{arch}.block_count", low=1, high=_MAX_LAYERS)
        n_heads = metadata.integer(f"{arch}.attention.head_count", low=1, high=_MAX_HEADS)
        n_kv_heads = metadata.integer(
            f"{arch}.attention.head_count_kv", n_heads, low=1, high=_MAX_HEADS
        )
        if n_heads % n_kv_heads:
            raise metadata.fault(
                f"{arch}.attention.head_count_kv is {n_kv_heads}; expected a divisor of "
                f"{arch}.attention.head_count, {n_heads}"
            )
        head_dim = _head_dim(metadata, arch, hidden_size, n_heads)
        eps = metadata.number(f"{arch}.attention.layer_norm_rms_epsilon")
        if not 0.0 < eps < 1.0:
            raise metadata.fault(
                f"{arch}.attention.layer_norm_rms_epsilon is {eps}; expected it between 0 and 1"
            )
        if not metadata.flag(f"{arch}.attention.causal", True):
            raise metadata.fault(f"{arch}.attention.causal is False; expected True")
        rope_dims = metadata.integer(f"{arch}.rope.dimension_count", head_dim, low=2, high=head_dim)
        if rope_dims % 2:
            raise metadata.fault(f"{arch}.rope.dimension_count is {rope_dims}; expected it even")
        wide = n_layers == family.layers_of_27b
        scaled_by = hidden_size / n_heads if wide else head_dim
        n_experts, n_experts_used = _experts(metadata, arch) if family.has_experts else (0, 0)
        return cls(
            architecture=arch,
            name=metadata.text("general.name", gguf.path.stem),
            vocab_size=_vocab_size(gguf, arch),
            hidden_size=hidden_size,
            intermediate_size=_intermediate_size(metadata, arch, n_experts_used),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=eps,
            context_length=metadata.integer(f"{arch}.context_length", low=1, high=_MAX_CONTEXT),
            rope_dims=rope_dims,
            tied_embeddings="output.weight" not in gguf.tensors,
            windows=_windows(metadata, arch, family, n_layers),
            attention_scale=_attention_scale(metadata, arch, scaled_by),
            attention_softcap=_cap(
                metadata, f"{arch}.attn_logit_softcapping", family.attention_softcap
            ),
            final_softcap=_cap(metadata, f"{arch}.final_logit_softcapping", family.final_softcap),
            n_experts=n_experts,
            n_experts_used=n_experts_used,
            normalized_experts=metadata.flag(f"{arch}.expert_weights_norm", True),
            rope_interleaved=metadata.flag("airllm.rope.interleaved", True),
        )


def _refuse_unknown_keys(metadata: Metadata, arch: str, family: _Family) -> None:
    known = _KNOWN_KEYS | family.keys
    for key, value in metadata.items():
        name = key.removeprefix(f"{arch}.")
        unknown = name != key and name.startswith(_ARITHMETIC_KEYS) and name not in known
        if unknown and not (isinstance(value, (int, float)) and value == 0):
            raise metadata.fault(f"{key} asks for something that {arch} models here do not do")


def _head_dim(metadata: Metadata, arch: str, hidden_size: int, n_heads: int) -> int:
    default = hidden_size // n_heads
    key = f"{arch}.attention.key_length"
    if key not in metadata and hidden_size % n_heads:
        raise metadata.fault(
            f"{arch}.attention.head_count is {n_heads}; expected a divisor of "
            f"{arch}.embedding_length, {hidden_size}"
        )
    if key not in metadata and default > _MAX_HEAD_DIM:
        raise metadata.fault(
            f"{arch}.attention.head_count is {n_heads}: heads of {default} dimensions; expected "
            f"at most {_MAX_HEAD_DIM}"
        )
    head_dim = metadata.integer(key, default, low=1, high=_MAX_HEAD_DIM)
    value_dim = metadata.integer(f"{arch}.attention.value_length", head_dim)
    if value_dim != head_dim:
        raise metadata.fault(
            f"{arch}.attention.value_length is {value_dim}; expected {head_dim}, the keys' length"
        )
    return head_dim


def _windows(metadata: Metadata, arch: str, family: _Family, n_layers: int) -> tuple[int, ...]:
    """The window of each layer; 0 where a layer sees all positions.

    Without a pattern all layers have the window. The pattern is a number, a period whose last layer
    sees all positions, or an array that says for each layer whether it has the window.
    """
    window = metadata.integer(f"{arch}.attention.sliding_window", family.window, high=_MAX_CONTEXT)
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = metadata.get(key)
    if isinstance(pattern, np.ndarray):
        if pattern.size != n_layers:
            raise metadata.fault(
                f"{key} has {pattern.size} entries; expected {n_layers}, one for each layer"
            )
        return tuple(window if local else 0 for local in pattern.tolist())
    period = metadata.integer(key, family.window_period)
    return tuple(0 if period and i % period == period - 1 else window for i in range(n_layers))


def _attention_scale(metadata: Metadata, arch: str, dims: float) -> float:
    """One over the square root of `dims`, unless the file says otherwise."""
    scale = metadata.number(f"{arch}.attention.scale", 0.0) or dims**-0.5
    if scale < 0.0:
        raise metadata.fault(f"{arch}.attention.scale is {scale}; expected it above 0")
    return scale


def _cap(metadata: Metadata, key: str, default: float) -> float:
    cap = metadata.number(key, default)
    if cap != 0.0 and cap < 1e-3:
        raise metadata.fault(f"{key} is {cap}; expected at least 0.001, or 0 for none")
    return cap


def _experts(metadata: Metadata, arch: str) -> tuple[int, int]:
    """How many experts there are, and how many a token uses."""
    n_experts = metadata.integer(f"{arch}.expert_count", low=1, high=_MAX_EXPERTS)
    n_used = metadata.integer(f"{arch}.expert_used_count", low=1, high=n_experts)
    gating = metadata.integer(f"{arch}.expert_gating_func", 1)
    if gating not in (0, 1):
        raise metadata.fault(f"{arch}.expert_gating_func is {gating}; expected 1, softmax")
    scale = metadata.number(f"{arch}.expert_weights_scale", 1.0)
    if scale not in (0.0, 1.0):  # 0 means unset
        raise metadata.fault(f"{arch}.expert_weights_scale is {scale}; expected 1")
    return n_experts, n_used


def _intermediate_size(metadata: Metadata, arch: str, n_experts_used: int) -> int:
    key = f"{arch}.feed_forward_length"
    if not n_experts_used:
        return metadata.integer(key, low=1, high=_MAX_WIDTH)
    default = metadata.integer(key, 0) // n_experts_used
    return metadata.integer(f"{arch}.expert_feed_forward_length", default, low=1, high=_MAX_WIDTH)


def _vocab_size(gguf: ModelFile, arch: str) -> int:
    """The rows of the embedding, which metadata and vocabulary must agree with."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise gguf.metadata.fault("tensor token_embd.weight is missing")
    rows = embedding.shape[0]
    said = gguf.metadata.integer(f"{arch}.vocab_size", rows)
    if said != rows:
        raise gguf.metadata.fault(
            f"{arch}.vocab_size is {said}; expected {rows}, the rows of token_embd.weight"
        )
    if "tokenizer.ggml.tokens" in gguf.metadata:
        n_tokens = len(gguf.metadata.texts("tokenizer.ggml.tokens"))
        if n_tokens != rows:
            raise gguf.metadata.fault(
                f"tokenizer.ggml.tokens has {n_tokens} entries; expected {rows}, the rows of "
                f"token_embd.weight"
            )
    return rows
