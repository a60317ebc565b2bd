"""The kinds of op: SIGNATURES has the inputs, weights, attributes and output width of each.

The backends implement these kinds and nothing else. The C++ backend's table is
cpp_ext/graph/op_kinds.h; a test compares the two.

Each file has the kinds of a family: a function for each, which checks a call, GraphError for a
fault, and returns the output's width (None without an output); and the table, whose comments say
what an op computes.
"""

from collections.abc import Mapping

from airllm.graph.ops import (
    attention,
    dense,
    elementwise,
    experts,
    recurrent,
    slices,
    sparse,
    streams,
)
from airllm.graph.vocabulary import Signature

__all__ = ["SIGNATURES"]

SIGNATURES: Mapping[str, Signature] = {
    **dense.SIGNATURES,
    **elementwise.SIGNATURES,
    **attention.SIGNATURES,
    **sparse.SIGNATURES,
    **experts.SIGNATURES,
    **recurrent.SIGNATURES,
    **streams.SIGNATURES,
    **slices.SIGNATURES,
}
