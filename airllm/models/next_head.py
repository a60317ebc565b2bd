"""Next-token heads: what a model was trained with to guess the token after the next one
(multi-token prediction, arXiv:2412.19437, section 2.2).

A head is one more layer behind the model. For the token at position p it reads the token's
embedding and the model's hidden state of position p - 1, behind the last norm:

    x = eh_proj [enorm(embedding of token p), hnorm(hidden p - 1)]
    x = layer(x)
    hidden = shared_head_norm(x),  logits of token p + 1 = shared_head_head hidden

Its own hidden state takes the model's place for the next position, so that one head guesses
further tokens one by one. Step-3.5 and MiMo-V2 read both hidden states as they are before their
norms, as in the code that serves them (SGLang and llama.cpp, and for Step-3.5 also vLLM).

The paper writes the two halves of eh_proj's input the other way round; the files of all models have
the embedding first. Embedding and output matrix are the model's, unless the file has others for the
head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from airllm.formats.model_file import ModelFile
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.graph.rewrite import only_appends
from airllm.graph.state import LayerState, state_of
from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.rope import Rotation

__all__ = ["HeadSteps", "NextHead", "next_head"]

PROJECTION = "nextn.eh_proj"  # the slot that every head has

_Each = TypeVar("_Each")


class HeadSteps(NamedTuple, Generic[_Each]):
    """What there is for each of a head's graphs: the graph, its executor, or its weights.

    norm: the model's residual to its hidden state. join: tokens and hidden states to the head's
    residual. layer: the residual to itself. append: the part of the layer that writes keys and
    values, for tokens after which nothing is to be guessed. output: the residual to the head's
    hidden state and logits.
    """

    norm: _Each
    join: _Each
    layer: _Each
    append: _Each
    output: _Each


@dataclass(frozen=True)
class NextHead:
    """The first head of a model; further heads are not used.

    index: of the layer that its tensors belong to. rotations: see LayerKind.
    """

    index: int
    graphs: HeadSteps[Graph]
    rotations: Mapping[str, Rotation]

    @property
    def state(self) -> LayerState:
        """What it keeps of a sequence."""
        return state_of(self.graphs.layer)


def next_head(
    file: ModelFile,
    c: ModelConfig,
    activations: Activations,
    layer: Graph,
    rotations: Mapping[str, Rotation],
    finish: Callable[[Graph], Graph],
    *,
    normed: bool,
) -> NextHead | None:
    """The head that a file has; None if it has none. layer: the graph of its layer. finish: what
    is done to each graph in the end. normed: whether hidden states are those behind the norms."""
    if not c.left_out or _name(c, PROJECTION) not in file.tensors:
        return None

    def slot(own: str, shared: str) -> str:
        return own if _name(c, own) in file.tensors else shared

    table = slot("nextn.embed_tokens", "token_embd")
    norm = slot("nextn.shared_head_norm", slot("layer_output_norm", "output_norm"))
    matrix = slot("nextn.shared_head_head", "token_embd" if c.tied_embeddings else "output")
    graphs = HeadSteps(
        norm=_norm(c, activations, normed),
        join=_join(c, activations, table),
        layer=layer,
        append=only_appends(layer),
        output=_output(c, activations, norm, matrix, normed),
    )
    return NextHead(c.left_out[0], HeadSteps(*map(finish, graphs)), rotations)


def _name(c: ModelConfig, slot: str) -> str:
    return f"blk.{c.left_out[0]}.{slot}.weight"


def _norm(c: ModelConfig, activations: Activations, normed: bool) -> Graph:
    g = GraphBuilder("hidden", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    hidden = g.external("hidden", c.hidden_size)
    if normed:
        blocks.norm(g, c, x, "output_norm", out=hidden)
    else:
        g.take_columns(x, 0, c.hidden_size, out=hidden)
    return g.build()


def _join(c: ModelConfig, activations: Activations, table: str) -> Graph:
    g = GraphBuilder("join", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    before = g.external("hidden", c.hidden_size)  # [n, hidden], each of the position before
    rows = g.weight(table, c.vocab_size, c.hidden_size)
    e = g.embed(tokens, rows, scale=c.embedding_scale)  # [n, hidden]
    e = blocks.norm(g, c, e, "nextn.enorm", out=e)
    h = blocks.norm(g, c, before, "nextn.hnorm")
    both = g.join_heads(e, h, 1)  # [n, 2 * hidden]
    x = g.external("residual", c.hidden_size)
    g.linear(both, g.weight(PROJECTION, c.hidden_size, 2 * c.hidden_size), out=x)
    return g.build()


def _output(
    c: ModelConfig, activations: Activations, norm: str, matrix: str, normed: bool
) -> Graph:
    g = GraphBuilder("next", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    hidden = g.external("hidden", c.hidden_size)
    if not normed:
        g.take_columns(x, 0, c.hidden_size, out=hidden)
    h = blocks.norm(g, c, x, norm, out=hidden if normed else None)
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    g.linear(h, g.weight(matrix, c.vocab_size, c.hidden_size), out=logits)
    return g.build()
