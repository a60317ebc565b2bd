"""The weights of a mixture of experts, as both backends have them."""

from collections.abc import Iterable
from typing import Any


class Experts(list[Any]):
    """A matrix for each expert, prepared by itself, so that no work is done for idle ones.

    shape: (n_experts, n, k). nbytes: of all of them together.
    """

    def __init__(self, matrices: Iterable[Any]) -> None:
        super().__init__(matrices)
        self.shape = (len(self), *self[0].shape)
        self.nbytes = sum(matrix.nbytes for matrix in self)
