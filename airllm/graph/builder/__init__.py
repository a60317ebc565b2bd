"""Writes a graph down, op by op.

    g = GraphBuilder("mlp")
    x = g.external("residual", 576)                             # [n, 576]
    h = g.rms_norm(x, g.weight("ffn_norm", 576), eps=1e-5)      # [n, 576]
    g.add(x, g.linear(h, g.weight("ffn_down", 576, 576)), out=x)
    graph = g.build()

Shapes are checked at each call, so that an error points at the wrong line.
"""

from airllm.graph.builder.attention import AttentionOps
from airllm.graph.builder.dense import DenseOps
from airllm.graph.builder.elementwise import ElementwiseOps
from airllm.graph.builder.experts import ExpertOps
from airllm.graph.builder.recurrent import RecurrentOps
from airllm.graph.builder.slices import SliceOps
from airllm.graph.builder.sparse import SparseOps
from airllm.graph.builder.streams import StreamOps

__all__ = ["GraphBuilder"]


class GraphBuilder(
    DenseOps,
    ElementwiseOps,
    AttentionOps,
    SparseOps,
    ExpertOps,
    RecurrentOps,
    StreamOps,
    SliceOps,
):
    """Writes a graph down op by op; each method returns the buffer that the op writes.

    A new buffer is named after the op's weight, or the op. `out` names another one to write to,
    which may be an input if the op works in place (ops.SIGNATURES).
    """
