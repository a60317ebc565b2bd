"""Weights of many matrices, for both backends."""

from collections.abc import Iterable
from typing import Any


class Experts(list[Any]):
    """A matrix for each expert, or each head. Each is prepared separately, so that idle experts
    cost no work.

    shape: (n_experts, n, k). nbytes: of all of them together.
    """

    def __init__(self, matrices: Iterable[Any]) -> None:
        super().__init__(matrices)
        self.shape = (len(self), *self[0].shape)
        self.nbytes = sum(matrix.nbytes for matrix in self)
