"""A model's configuration, read from GGUF metadata; nothing in it is believed unchecked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.formats.gguf import GGUFFile, Metadata

# Limits far above any model there is (the longest contexts are 10 million tokens, the widest layers
# some 100,000), so that what follows cannot overflow. That the tensors are there, in these sizes,
# is checked against the graphs: see check_tensors in airllm.weights.
_MAX_CONTEXT = 2**24
_MAX_WIDTH = 2**20
_MAX_LAYERS = 2**12
_MAX_HEADS = 2**12
_MAX_HEAD_DIM = 256  # the attention kernels'

# Keys that change the arithmetic begin like this. One that is not known is refused, not ignored:
# the model would run and be wrong. A value of 0 or false turns its feature off.
_ARITHMETIC_KEYS = ("attention.", "rope.", "expert", "logit_scale", "embedding_scale", "residual_")
_KNOWN_KEYS = frozenset(
    [
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
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
class ModelConfig:
    """What a decoder-only transformer is made of."""

    architecture: str  # "llama": the family's file in airllm.models
    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int  # tokens that the model was trained for, or its attention window if smaller
    rope_dims: int  # dimensions of a head that rotate, from the first on
    tied_embeddings: bool  # the output matrix is the embedding

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> "ModelConfig":
        """Read and check. FormatError names the file, the key and its value."""
        metadata = gguf.metadata
        arch = metadata.text("general.architecture")
        _refuse_unknown_keys(metadata, arch)
        hidden_size = metadata.integer(f"{arch}.embedding_length", low=1, high=_MAX_WIDTH)
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
        return cls(
            architecture=arch,
            name=metadata.text("general.name", gguf.path.stem),
            vocab_size=_vocab_size(gguf, arch),
            hidden_size=hidden_size,
            intermediate_size=metadata.integer(
                f"{arch}.feed_forward_length", low=1, high=_MAX_WIDTH
            ),
            n_layers=metadata.integer(f"{arch}.block_count", low=1, high=_MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=eps,
            context_length=_context_length(metadata, arch),
            rope_dims=rope_dims,
            tied_embeddings="output.weight" not in gguf.tensors,
        )


def _refuse_unknown_keys(metadata: Metadata, arch: str) -> None:
    for key, value in metadata.items():
        name = key.removeprefix(f"{arch}.")
        unknown = name != key and name.startswith(_ARITHMETIC_KEYS) and name not in _KNOWN_KEYS
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


def _context_length(metadata: Metadata, arch: str) -> int:
    context = metadata.integer(f"{arch}.context_length", low=1, high=_MAX_CONTEXT)
    # A window masks nothing in a context that is no longer than it, so up to there we are exact.
    window = metadata.integer(f"{arch}.attention.sliding_window", 0)
    return min(context, window) if window else context


def _vocab_size(gguf: GGUFFile, arch: str) -> int:
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


def inverse_frequencies(gguf: GGUFFile, config: ModelConfig) -> NDArray[np.float64]:
    """Radians per position of each pair of rotating dimensions: float64 [rope_dims / 2].

    theta^(-2i / rope_dims), divided by the factor of linear scaling, and by the factors of the
    tensor rope_freqs.weight, which is how GGUF stores Llama 3's scaling. FormatError for a scaling
    that is not implemented, by its name.
    """
    metadata, arch = gguf.metadata, config.architecture
    theta = metadata.number(f"{arch}.rope.freq_base", 10000.0)
    if theta < 1.0:
        raise metadata.fault(f"{arch}.rope.freq_base is {theta}; expected at least 1")
    exponents = np.arange(0, config.rope_dims, 2, dtype=np.float64) / config.rope_dims
    frequencies = theta**-exponents / _linear_scale(metadata, arch)
    if "rope_freqs.weight" not in gguf.tensors:
        return frequencies
    tensor = gguf.tensors["rope_freqs.weight"]
    if tensor.type != "f32" or tensor.shape != exponents.shape:
        raise metadata.fault(
            f"tensor rope_freqs.weight is {tensor.type} {list(tensor.shape)}; expected f32 "
            f"{list(exponents.shape)}, one for each rotating pair"
        )
    factors = gguf.data(tensor.name).copy().view("<f4").astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise metadata.fault("tensor rope_freqs.weight has values that are not positive numbers")
    return frequencies / factors


def _linear_scale(metadata: Metadata, arch: str) -> float:
    """What linear scaling divides positions by; 1 without."""
    kind = metadata.text(f"{arch}.rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise metadata.fault(
            f"{arch}.rope.scaling.type is {kind!r}; this version knows 'none' and 'linear'"
        )
    # The second key is what files of before September 2023 say.
    keys = (f"{arch}.rope.scaling.factor", f"{arch}.rope.scale_linear")
    key = next((key for key in keys if key in metadata), keys[0])
    factor = metadata.number(key, 1.0) or 1.0  # 0 means unset
    if factor < 1.0:
        raise metadata.fault(f"{key} is {factor}; expected at least 1")
    return factor
