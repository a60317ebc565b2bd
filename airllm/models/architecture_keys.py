"""Reads the keys of a model's architecture from GGUF metadata; no value is believed unchecked.

Keys and their meanings are llama.cpp's. A default is what llama.cpp assumes for a file whose
converter did not write that key yet. FormatError names the file, the key and its value.
"""

from collections.abc import Sequence

import numpy as np

from airllm.util.metadata import Metadata

__all__ = ["MAX_LAYERS", "MAX_WIDTH", "ArchitectureKeys"]

MAX_WIDTH = 2**20  # the widest known layers have about 100,000
MAX_LAYERS = 2**12
_MAX_SCALE = 1e6

# Keys with these prefixes change the arithmetic. A key among them that nobody has read is refused:
# if it were ignored, the model would run and give wrong answers. A value of 0 or false turns a
# feature off.
_ARITHMETIC_KEYS = (
    *("attention.", "rope.", "expert", "moe", "attn_", "final_", "logit_scale"),
    *("embedding_scale", "residual_", "leading_dense", "interleave_", "ssm.", "nextn"),
    *("shortconv.", "kda.", "factor.", "activation.", "altup.", "activation_sparsity"),
    *("hyper_connection.", "hash_layer", "swiglu_", "ple."),
)
_HARMLESS_KEYS = frozenset(["rope.scaling.finetuned"])


class ArchitectureKeys:
    """The keys "ARCHITECTURE.name" of one file. It remembers which were read: `finish` refuses the
    others."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.architecture = metadata.text("general.architecture")
        self._read = {self.key(name) for name in _HARMLESS_KEYS}
        self.n_layers = self.integer("block_count", low=1, high=MAX_LAYERS)

    def key(self, name: str) -> str:
        """The whole key of `name`: "qwen2.rope.freq_base"."""
        return f"{self.architecture}.{name}"

    def ignore(self, *names: str) -> None:
        """Accept keys whose values make no difference here."""
        self._read |= {self.key(name) for name in names}

    def ignore_all(self, prefix: str) -> None:
        """Likewise of all keys that begin so: "rope."."""
        first = self.key(prefix)
        self._read |= {key for key in self.metadata if key.startswith(first)}

    def has(self, name: str) -> bool:
        return self.key(name) in self.metadata

    def integer(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = MAX_WIDTH
    ) -> int:
        self.ignore(name)
        return self.metadata.integer(self.key(name), default, low=low, high=high)

    def number(self, name: str, default: float | None = None) -> float:
        self.ignore(name)
        return self.metadata.number(self.key(name), default)

    def flag(self, name: str, default: bool) -> bool:
        self.ignore(name)
        return self.metadata.flag(self.key(name), default)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """An array of `count` flags; None if the file has none."""
        self.ignore(name)
        value = self.metadata.get(self.key(name))
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biu":
            raise self.metadata.fault(f"{self.key(name)} is no array of true and false")
        if value.size != count:
            raise self.metadata.fault(
                f"{self.key(name)} has {value.size} entries; expected {count}, one for each layer"
            )
        return [bool(each) for each in value.tolist()]

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """A number for each layer: an array of as many, or one that they have in common. key: the
        whole key."""
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray):
            values = [self.metadata.number(key)] * self.n_layers
        elif value.dtype.kind in "fiu" and value.shape == (self.n_layers,):
            values = value.tolist()
        else:
            raise self.metadata.fault(
                f"{key} is no array of {self.n_layers} numbers, one for each layer"
            )
        for each in values:
            if not low <= each <= high:
                raise self.metadata.fault(f"{key} has {each}; expected {low} to {high}")
        return tuple(map(float, values))

    def alike(self, name: str, default: float) -> float:
        """A number that all layers have: one, or an array of one for each layer at least."""
        self.ignore(name)
        value = self.metadata.get(self.key(name), default)
        if not isinstance(value, np.ndarray):
            return self.number(name, default)
        values = value[: self.n_layers]
        if values.dtype.kind not in "fiu" or values.shape != (self.n_layers,):
            raise self.metadata.fault(
                f"{self.key(name)} is no array of {self.n_layers} numbers, one for each layer"
            )
        if not (np.isfinite(values).all() and (values == values[0]).all()):
            raise self.metadata.fault(f"{self.key(name)} differs between layers; expected it alike")
        return float(values[0])

    def text(self, name: str, default: str) -> str:
        self.ignore(name)
        return self.metadata.text(self.key(name), default)

    def positive(self, name: str, default: float) -> float:
        """A number above 0; the default also for 0, which means unset."""
        value = self.number(name, default) or default
        if not 0.0 < value < _MAX_SCALE:
            raise self.fault(name, value, f"expected it above 0 and below {_MAX_SCALE:g}")
        return value

    def cap(self, name: str, default: float = 0.0) -> float:
        """A limit of absolute values; 0: none."""
        cap = self.number(name, default)
        if cap != 0.0 and cap < 1e-3:
            raise self.fault(name, cap, "expected at least 0.001, or 0 for none")
        return cap

    def of_layers(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = MAX_WIDTH
    ) -> tuple[int, ...]:
        """An integer for each layer: an array of as many, or one that they have in common."""
        key, value = self.key(name), self.metadata.get(self.key(name))
        if not isinstance(value, np.ndarray):
            return (self.integer(name, default, low=low, high=high),) * self.n_layers
        self.ignore(name)
        if value.dtype.kind not in "iu" or value.size != self.n_layers:
            raise self.metadata.fault(
                f"{key} is an array of {value.size} {value.dtype.name}; expected {self.n_layers} "
                "integers, one for each layer"
            )
        for each in value.tolist():
            if not low <= each <= high:
                raise self.metadata.fault(f"{key} has {each}; expected {low} to {high}")
        return tuple(value.tolist())

    def numbers_of_layers(self, name: str, default: float, *, high: float) -> tuple[float, ...]:
        """A number from 0 to below `high` for each layer: an array of as many."""
        self.ignore(name)
        value = self.metadata.get(self.key(name))
        if value is None:
            return (default,) * self.n_layers
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise self.metadata.fault(f"{self.key(name)} is no array of numbers")
        if value.shape != (self.n_layers,) or not ((value >= 0) & (value < high)).all():
            raise self.metadata.fault(
                f"{self.key(name)} is no array of {self.n_layers} numbers from 0 to below {high:g}"
            )
        return tuple(map(float, value.tolist()))

    def require_alike(self, name: str, of_layers: Sequence[int]) -> None:
        """Refuse layers that have the part and differ in its size."""
        sizes = sorted({size for size in of_layers if size})
        if len(sizes) > 1:
            raise self.metadata.fault(
                f"{self.key(name)} has {sizes[0]} and {sizes[-1]}; expected one number beside 0"
            )

    def fault(self, name: str, value: object, wanted: str) -> Exception:
        return self.metadata.fault(f"{self.key(name)} is {value}; {wanted}")

    def require_true(self, name: str) -> None:
        """Refuse a file that says no to what is always done here."""
        if not self.flag(name, True):
            raise self.fault(name, False, "expected True")

    def finish(self) -> None:
        """FormatError for a key that changes the arithmetic and that nobody has read."""
        for key, value in self.metadata.items():
            name = key.removeprefix(f"{self.architecture}.")
            unknown = name != key and name.startswith(_ARITHMETIC_KEYS) and key not in self._read
            if unknown and not (isinstance(value, (int, float)) and value == 0):
                raise self.metadata.fault(
                    f"{key} asks for something that {self.architecture} models here do not do"
                )
