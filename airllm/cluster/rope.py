"""The angles by which a root's rope turns queries and keys."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.cluster.node_config import Rope, RopeType


@dataclass(frozen=True, slots=True)
class Angles:
    """What the frequencies depend on; factor 1 where they are not scaled."""

    head_dim: int
    theta: float
    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    @classmethod
    def of(cls, config: Rope) -> "Angles":
        if config.type is RopeType.FALCON or config.factor == 1.0:
            return cls(config.head_dim, config.theta, 1.0, 1.0, 1.0, 1)
        return cls(
            config.head_dim,
            config.theta,
            config.factor,
            config.low_frequency_factor,
            config.high_frequency_factor,
            config.original_length,
        )

    def frequencies(self) -> NDArray[np.float64]:
        """Radians per position: [head_dim / 2]. Slow ones are divided by the factor, fast ones
        are not, and those between by a mixture (Llama 3.1)."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        f = self.theta**-exponents
        if self.factor == 1.0:
            return f
        turns = self.original_length * f / (2 * np.pi)  # in the original length
        low, high = self.low_frequency_factor, self.high_frequency_factor
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - share) * f / self.factor + share * f
