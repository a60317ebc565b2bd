"""Model families: one file each, which reads like the model's definition.

A family gives three kinds of graphs: `embed` (token ids to the residual stream), `layer` (the
residual stream to itself, run once for each layer; layers that differ have a graph each) and `head`
(the residual stream to logits). Weight slots are named as GGUF names the tensors.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from airllm.formats.model_file import ModelFile
from airllm.graph.graph import Activations, Graph
from airllm.graph.rewrite import fuse
from airllm.graph.state import LayerState, state_of
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.families import FAMILIES
from airllm.models.last_hidden import before_the_last_linear
from airllm.models.matrix_scales import scaled, scaled_slots
from airllm.models.next_head import NextHead, next_head
from airllm.models.rope import Rotation

__all__ = ["FAMILIES", "LayerKind", "Model", "ModelConfig", "load_model"]


def _shared(found: Sequence[Mapping[str, Rotation]]) -> list[dict[str, Rotation]]:
    """Equal rotations as one object, of which an engine then keeps one table."""
    known: list[Rotation] = []

    def one(rotation: Rotation) -> Rotation:
        same = next((other for other in known if other.equals(rotation)), None)
        if same is None:
            known.append(rotation)
        return same or rotation

    return [{name: one(each) for name, each in of_layer.items()} for of_layer in found]


@dataclass(frozen=True)
class LayerKind:
    """What equal layers have in common."""

    graph: Graph
    rotations: Mapping[str, Rotation]  # by the external buffer of the graph that has its rows


@dataclass(frozen=True)
class Model:
    """A model without its weights."""

    config: ModelConfig
    embed: Graph
    kinds: tuple[LayerKind, ...]
    kind_of_layer: tuple[int, ...]  # for each layer an index into `kinds`
    head: Graph
    last_hidden: Graph  # from what the layers leave to "hidden", which the head multiplies
    next_head: NextHead | None = None  # which guesses further tokens, if that is wanted

    @property
    def carried(self) -> dict[str, int]:
        """Widths of the buffers that pass from graph to graph: the residual, and others that the
        embedding's graph or a layer's writes, and later layers read; and the rows that n-grams
        choose, which the engine looks up."""
        graphs = [self.embed, *(kind.graph for kind in self.kinds)]
        written = {name for graph in graphs for op in graph.ops for name in op.outputs}
        if self.config.ngrams is not None:
            written.add("ngrams")
        return {
            buffer.name: buffer.width
            for graph in graphs
            for buffer in graph.buffers
            if buffer.external and buffer.name in written
        }

    def carried_to(self, graph: Graph) -> list[str]:
        """The names of the carried buffers that a graph has."""
        return [name for name in self.carried if graph.has(name)]

    @property
    def rotations(self) -> list[Rotation]:
        """All that differ."""
        tables = [kind.rotations for kind in self.kinds]
        tables += [self.next_head.rotations] if self.next_head else []
        return list({id(each): each for table in tables for each in table.values()}.values())

    @property
    def states(self) -> list[LayerState]:
        """What each layer keeps of a sequence."""
        keys_of = dict(
            zip(self.kind_of_layer, (c.keys_of for c in self.config.layers), strict=True)
        )
        of_kind = {kind: state_of(self.kinds[kind].graph, keys_of[kind]) for kind in keys_of}
        return [of_kind[kind] for kind in self.kind_of_layer]


def load_model(
    gguf: ModelFile,
    activations: Activations = "auto",
    *,
    fusion: bool = False,
    with_next_head: bool = False,
) -> Model:
    """The model that a file describes. fusion: rewrite its graphs with graph.rewrite.fuse.
    with_next_head: also its next-token head, if the file has one and the family uses it.
    FormatError for an architecture that has no family here."""
    architecture = gguf.metadata.text("general.architecture")
    if architecture not in FAMILIES:
        raise gguf.metadata.fault(
            f"the architecture {architecture[:80]!r} is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family, reader = FAMILIES[architecture], ConfigReader(gguf)
    config = family.configure(reader)
    layers = list(dict.fromkeys(config.layers))
    further = family.next_layer(config) if with_next_head and family.next_layer else None
    all_layers = layers if further is None else [*layers, further]
    rotations = _shared([family.rotations(reader, config, each) for each in all_layers])
    reader.finish()

    def finish(graph: Graph, slots: Collection[str]) -> Graph:
        graph = scaled(graph, slots)
        return fuse(graph) if fusion else graph

    def with_scales(graph: Graph, layer: int | None = None) -> Graph:
        return finish(graph, scaled_slots(gguf, graph, layer))

    head = None
    if further is not None:
        graph = family.layer(config, activations, further)
        own = functools.partial(with_scales, layer=next(iter(config.left_out), None))
        normed = family.next_reads_normed
        head = next_head(gguf, config, activations, graph, rotations[-1], own, normed=normed)
    plain = [family.layer(config, activations, layer) for layer in layers]
    # Layers that are equal but for the matrices that have a scale differ in their graphs.
    which = [layers.index(layer) for layer in config.layers]
    stored = [*range(config.n_stored_layers)] * config.n_loops  # the layer in the file, of each
    of_layer = [
        (kind, scaled_slots(gguf, plain[kind], i)) for kind, i in zip(which, stored, strict=True)
    ]
    kinds = list(dict.fromkeys(of_layer))
    return Model(
        config,
        with_scales(family.embed(config, activations)),
        tuple(LayerKind(finish(plain[kind], slots), rotations[kind]) for kind, slots in kinds),
        tuple(kinds.index(each) for each in of_layer),
        with_scales(family.head(config, activations)),
        before_the_last_linear(family.head(config, activations)),
        head,
    )
