"""How fast the dimensions of a head rotate with position (arXiv:2104.09864), and its scalings."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader

__all__ = [
    "ROPE_TENSORS",
    "STOPS",
    "YARN_TRUNCATES",
    "Rotation",
    "plain_rotation",
    "read_rotation",
    "windowed_rotations",
]

Float64 = NDArray[np.float64]

# Tensors that divide frequencies, and that no graph has a slot for.
ROPE_TENSORS = frozenset(
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"]
)
# The factor that GGUF files have for a pair that does not rotate.
STOPS = 1e30
# Whether YaRN's limits are rounded to whole dimensions, as in all GGUF files. A folder can say no.
YARN_TRUNCATES = "airllm.rope.yarn_truncates"


@dataclass(frozen=True)
class Rotation:
    """The rotation of a layer's queries and keys.

    inv_freq: float64 [rope_dims / 2], radians per position of each pair of rotating dimensions.
    magnitude: what rotated values are multiplied by.
    long_inv_freq: in place of inv_freq, for engines with a context of more than `original_context`
    tokens (LongRoPE, arXiv:2402.13753).
    step: positions are rounded down to multiples of it.
    temperature, period, ahead: rotated values at position p are multiplied by
    1 + temperature * ln(1 + floor((p + ahead) / period)), too.
    """

    inv_freq: Float64
    magnitude: float = 1.0
    long_inv_freq: Float64 | None = None
    original_context: int = 0
    temperature: float = 0.0
    period: int = 1
    ahead: int = 0
    step: int = 1

    def equals(self, other: "Rotation") -> bool:
        """Whether both give the same angles and magnitudes. (== would compare arrays.)"""
        mine, its = (
            (
                *(each.magnitude, each.original_context, each.temperature),
                *(each.period, each.ahead, each.step),
            )
            for each in (self, other)
        )
        long, others_long = (
            np.empty(0) if each.long_inv_freq is None else each.long_inv_freq
            for each in (self, other)
        )
        same = np.array_equal(self.inv_freq, other.inv_freq) and np.array_equal(long, others_long)
        return same and mine == its

    def frequencies(self, context: int) -> Float64:
        """For an engine with that context."""
        if self.long_inv_freq is None or context <= self.original_context:
            return self.inv_freq
        return self.long_inv_freq

    def magnitudes(self, positions: NDArray[np.int64]) -> Float64:
        """What rotated values at these positions are multiplied by."""
        periods = (positions + self.ahead) // self.period
        return self.magnitude * (1.0 + self.temperature * np.log1p(periods))


def plain_rotation(
    r: ConfigReader, config: ModelConfig, theta_name: str, default: float
) -> Rotation:
    """Without scaling. theta_name: the key of theta."""
    return Rotation(_theta(r, theta_name, default) ** -_exponents(config))


def read_rotation(
    r: ConfigReader,
    config: ModelConfig,
    theta_name: str = "rope.freq_base",
    *,
    n_factors: int = 0,
) -> Rotation:
    """theta^(-2i / rope_dims), scaled as the file says. theta_name: the key of theta. n_factors: of
    rope_freqs.weight, whose first are those of the pairs that rotate; 0: there are no others.

    Scalings: linear; YaRN (arXiv:2309.00071); LongRoPE's factors, which are tensors; and the tensor
    rope_freqs.weight, which is how GGUF stores Llama 3's scaling. FormatError for another scaling,
    by its name.
    """
    exponents, theta = _exponents(config), _theta(r, theta_name, 10000.0)
    frequencies = theta**-exponents
    kind = r.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise r.metadata.fault(
            f"{r.key('rope.scaling.type')} is {kind!r}; this version knows 'none', 'linear', "
            "'yarn' and 'longrope'"
        )
    original = r.integer("rope.scaling.original_context_length", config.context_length, high=2**24)
    magnitude = r.positive("rope.scaling.attn_factor", 1.0)
    if "rope_factors_short.weight" in r.file.tensors:
        r.ignore("rope.scaling.factor")
        short, long = (
            frequencies / _factors(r, f"rope_factors_{name}.weight", len(exponents))
            for name in ("short", "long")
        )
        return Rotation(short, magnitude, long, original)
    if kind == "yarn":
        return _yarn(r, frequencies, theta, original, magnitude)
    if kind == "none":
        r.ignore("rope.scaling.factor")
    else:
        frequencies = frequencies / _linear_factor(r)
    if "rope_freqs.weight" in r.file.tensors:
        factors = _factors(r, "rope_freqs.weight", n_factors or len(exponents))[: len(exponents)]
        # Sines of 1e-30 would make denormal products, which take a hundred cycles each.
        frequencies = np.where(factors < 0.9 * STOPS, frequencies / factors, 0.0)
    return Rotation(frequencies, magnitude)


def windowed_rotations(
    r: ConfigReader,
    config: ModelConfig,
    layer: LayerConfig,
    default: float = 10000.0,
    *,
    n_factors: int = 0,
) -> dict[str, Rotation]:
    """Layers with a window have a theta of their own, unscaled. default: if the file has none.
    n_factors: see read_rotation."""
    if layer.window:
        return {"rope": plain_rotation(r, config.of(layer), "rope.freq_base_swa", default)}
    r.ignore("rope.freq_base_swa")
    return {"rope": read_rotation(r, config, n_factors=n_factors)}


def _exponents(config: ModelConfig) -> Float64:
    return np.arange(0, config.rope_dims, 2, dtype=np.float64) / config.rope_dims


def _theta(r: ConfigReader, name: str, default: float) -> float:
    theta = r.number(name, default)
    if theta < 1.0:
        raise r.fault(name, theta, "expected at least 1")
    return theta


def _linear_factor(r: ConfigReader) -> float:
    """What linear scaling divides positions by; 1 without scaling."""
    # Files from before September 2023 have the second key.
    names = ("rope.scaling.factor", "rope.scale_linear")
    name = next((name for name in names if r.has(name)), names[0])
    factor = r.number(name, 1.0) or 1.0  # 0 means unset
    if factor < 1.0:
        raise r.fault(name, factor, "expected at least 1")
    return factor


def _yarn(
    r: ConfigReader, frequencies: Float64, theta: float, original: int, magnitude: float
) -> Rotation:
    """Dimensions that turn more than beta_fast times in the original context keep their frequency;
    those that turn less than beta_slow times are divided by the factor; between them, a ramp."""
    factor = _linear_factor(r)
    fast = r.positive("rope.scaling.yarn_beta_fast", 32.0)
    slow = r.positive("rope.scaling.yarn_beta_slow", 1.0)
    if original < 1 or theta <= 1.0:
        raise r.fault("rope.scaling.original_context_length", original, "expected at least 1")
    # The ratio of two such magnitudes where the file says what all dimensions are multiplied by.
    all_dims = r.number("rope.scaling.yarn_log_multiplier", 0.0)
    grown = 0.1 * math.log(factor)
    magnitude *= (1.0 + grown) / (1.0 + all_dims * grown) if all_dims else 1.0 + grown
    if not 0.0 < magnitude < 1e6:
        raise r.fault("rope.scaling.yarn_log_multiplier", all_dims, "expected a positive magnitude")
    r.ignore("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor")  # not read elsewhere
    n_dims = 2 * len(frequencies)
    low, high = (
        n_dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (fast, slow)
    )
    if r.metadata.flag(YARN_TRUNCATES, True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, n_dims - 1.0)
    ramp = np.clip((np.arange(len(frequencies)) - low) / max(high - low, 0.001), 0.0, 1.0)
    return Rotation(frequencies / factor * ramp + frequencies * (1.0 - ramp), magnitude)


def _factors(r: ConfigReader, name: str, n: int) -> Float64:
    """The tensor of that name, which divides the frequencies."""
    tensor = r.file.tensors.get(name)
    if tensor is None:
        raise r.metadata.fault(f"tensor {name} is missing")
    if tensor.type != "f32" or tensor.shape != (n,):
        raise r.metadata.fault(
            f"tensor {name} is {tensor.type} {list(tensor.shape)}; expected f32 [{n}], one for "
            "each rotating pair"
        )
    factors = r.file.data(name).copy().view("<f4").astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise r.metadata.fault(f"tensor {name} has values that are not positive numbers")
    return factors
