"""How fast the dimensions of a head rotate with position (arXiv:2104.09864), and its scalings."""

import numpy as np
from numpy.typing import NDArray

from airllm.formats.model_file import ModelFile
from airllm.models.config import ModelConfig
from airllm.util.metadata import Metadata


def inverse_frequencies(gguf: ModelFile, config: ModelConfig, window: int) -> NDArray[np.float64]:
    """Radians per position of each pair of rotating dimensions: float64 [rope_dims / 2].

    theta^(-2i / rope_dims), divided by the factor of linear scaling, and by the factors of the
    tensor rope_freqs.weight, which is how GGUF stores Llama 3's scaling. FormatError for a scaling
    that is not implemented, by its name.

    window: that of the layer. Gemma 3's layers with a window keep the theta of Gemma 2, unscaled.
    """
    metadata, arch = gguf.metadata, config.architecture
    exponents = np.arange(0, config.rope_dims, 2, dtype=np.float64) / config.rope_dims
    if arch == "gemma3" and window:
        return _theta(metadata, f"{arch}.rope.freq_base_swa") ** -exponents
    theta = _theta(metadata, f"{arch}.rope.freq_base")
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


def _theta(metadata: Metadata, key: str) -> float:
    theta = metadata.number(key, 10000.0)
    if theta < 1.0:
        raise metadata.fault(f"{key} is {theta}; expected at least 1")
    return theta


def _linear_scale(metadata: Metadata, arch: str) -> float:
    """The factor by which linear scaling divides positions; 1 without scaling."""
    kind = metadata.text(f"{arch}.rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise metadata.fault(
            f"{arch}.rope.scaling.type is {kind!r}; this version knows 'none' and 'linear'"
        )
    # Files from before September 2023 have the second key.
    keys = (f"{arch}.rope.scaling.factor", f"{arch}.rope.scale_linear")
    key = next((key for key in keys if key in metadata), keys[0])
    factor = metadata.number(key, 1.0) or 1.0  # 0 means unset
    if factor < 1.0:
        raise metadata.fault(f"{key} is {factor}; expected at least 1")
    return factor
