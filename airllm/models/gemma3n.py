"""Gemma 3n E2B and E4B (text): a token has several residual streams, of which a layer computes one
and predicts and corrects the others (AltUp, arXiv:2301.13310). A matrix of low rank lies beside
attention (LAuReL, arXiv:2411.07501), and in the first layers most gates are cut off. Like Gemma 4
it has an embedding of each token for each layer, and keys and values that the last layers share.

Norms multiply by their weight as it is.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from airllm.formats.hf_config import Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks, gemma4
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.rope import windowed_rotations

PERIOD = 5  # every such layer sees all positions
# Of the gates' standard deviations, where a file does not say: 95% are below, in the first layers.
CUTOFF, CUT_LAYERS = 1.6448536, 10
_CUTOFFS, _ACTIVE, _STREAMS = "activation_sparsity_scale", "altup.active_idx", "altup.num_inputs"
_MOST_STREAMS = 16
_EPS = 1e-5  # of the streams' mean squares

_NAMES: Mapping[str, str] = {
    **{name: slot for name, slot in gemma4.NAMES.items() if isinstance(slot, str)},
    "altup_projections.*": "altup_proj",
    "altup_unembed_projections.*": "altup_unembd_proj",
    "altup.correct_output_scale": "altup_correct_scale",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}


# ---- the configuration ---------------------------------------------------------------------------


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    shared = r.integer("attention.shared_kv_layers", 0, high=r.n_layers - 1)
    first_shared = r.n_layers - shared
    widths = r.of_layers("feed_forward_length", low=1)
    cutoffs = _cutoffs(r)
    if active := r.integer(_ACTIVE, 0):
        raise r.fault(_ACTIVE, active, "expected 0")
    layers = [
        LayerConfig(
            window,
            keys_of=gemma4.last_like(r, windows[:first_shared], window)
            if index >= first_shared
            else None,
            intermediate_size=widths[index],
            cutoff=cutoffs[index],
        )
        for index, window in enumerate(windows)
    ]
    laurel = r.file.tensors.get("blk.0.laurel_l.weight")
    return r.config(
        layers=layers,
        scaled_by=1.0,
        embedding_scale=r.integer("embedding_length", low=1) ** 0.5,
        final_softcap=r.cap("final_logit_softcapping", 30.0),
        intermediate_size=max(widths),
        per_layer_size=r.integer("embedding_length_per_layer_input", low=1),
        n_streams=r.integer(_STREAMS, 4, low=3, high=_MOST_STREAMS),
        laurel_rank=laurel.shape[0] if laurel is not None else 1,
        idle_tensors=gemma4.idle_keys(first_shared, r.n_layers),
    )


def _cutoffs(r: ConfigReader) -> list[float | None]:
    """Of each layer."""
    r.ignore(_CUTOFFS)
    key, value = r.key(_CUTOFFS), r.metadata.get(r.key(_CUTOFFS))
    if value is None:
        return [CUTOFF if index < CUT_LAYERS else None for index in range(r.n_layers)]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.size != r.n_layers:
        raise r.metadata.fault(f"{key} is no array of {r.n_layers} numbers, one for each layer")
    for cutoff in value.tolist():
        if not (cutoff == -np.inf or -1e3 < cutoff < 1e3):
            raise r.metadata.fault(f"{key} has {cutoff}; expected -1000 to 1000, or -inf")
    return [None if cutoff == -np.inf else float(cutoff) for cutoff in value.tolist()]


# ---- the graphs ----------------------------------------------------------------------------------


def embed(c: ModelConfig, activations: Activations) -> Graph:
    """Token ids to the streams: the embedding, and its projections of the same size; and to what
    each layer adds for the token."""
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    table = g.weight("token_embd", c.vocab_size, c.hidden_size)
    x = g.embed(tokens, table, scale=c.embedding_scale)  # [n, hidden]
    gemma4.embed_layers(g, c, tokens, x)
    others = g.linear(x, g.weight("altup_proj", (c.n_streams - 1) * c.hidden_size, c.hidden_size))
    g.put_columns(x, 0, out=streams)
    g.put_columns(g.match_rms(others, x, _EPS, out=others), c.hidden_size, out=streams)
    return g.build()


def head(c: ModelConfig, activations: Activations) -> Graph:
    """The mean of the first stream and the projections of the others, of its size, to logits."""
    g = GraphBuilder("head", activations=activations)
    hidden, n_others = c.hidden_size, c.n_streams - 1
    streams = g.external("residual", c.n_streams * hidden)
    x = g.take_columns(streams, 0, hidden)  # [n, hidden]
    others = g.take_columns(streams, hidden, n_others * hidden)
    others = g.head_linear(others, g.weight("altup_unembd_proj", n_others, hidden, hidden))
    others = g.match_rms(others, x, _EPS, out=others)
    x = g.merge_add(x, others, out=x)
    blocks.output_logits(g, c, g.scale(x, 1 / c.n_streams, out=x))
    return g.build()


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    c = c.of(layer)
    g = GraphBuilder("layer", activations=activations)
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    predicted = _predict(g, c, streams)
    first = g.take_columns(predicted, 0, c.hidden_size)  # [n, hidden]
    y = _halves(g, c, layer, first)  # [n, hidden]
    corrected = _correct(g, c, predicted, first, y)
    # The layer's own embedding of the token
    own = g.layer_columns(g.external("per_layer", c.n_layers * c.per_layer_size), c.per_layer_size)
    first = g.take_columns(corrected, 0, c.hidden_size)
    first = g.scale(first, weight=g.weight("altup_correct_scale", c.hidden_size), out=first)
    gate = blocks.linear(g, c, first, "inp_gate", c.per_layer_size)
    h = blocks.linear(g, c, g.geglu(gate, own, out=own), "proj", c.hidden_size)
    h = blocks.norm(g, c, h, "post_norm", out=h)
    g.add_to_streams(corrected, h, first=1, out=streams)
    return g.build()


def _halves(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, x: Buffer) -> Buffer:
    """Attention with the matrix of low rank beside it, and the feed-forward network."""
    h = blocks.norm(g, c, x, "attn_norm")
    low = blocks.linear(g, c, h, "laurel_l", c.laurel_rank)
    low = blocks.linear(g, c, low, "laurel_r", c.hidden_size)
    low = g.add(blocks.norm(g, c, low, "laurel_post_norm", out=low), h, out=low)
    a = gemma4.attention(g, c, layer, h)
    a = g.add(blocks.norm(g, c, a, "post_attention_norm", out=a), x, out=a)
    x = g.scale(g.add(a, low, out=a), 0.5**0.5, out=a)
    h = blocks.norm(g, c, x, "ffn_norm")
    gate = blocks.linear(g, c, h, "ffn_gate", c.intermediate_size)
    up = blocks.linear(g, c, h, "ffn_up", c.intermediate_size)
    if layer.cutoff is not None:
        gate = g.keep_above(gate, layer.cutoff, out=gate)
    h = blocks.linear(g, c, g.geglu(gate, up), "ffn_down", c.hidden_size)
    return g.add(blocks.norm(g, c, h, "post_ffw_norm", out=h), x, out=h)


def _mixture(g: GraphBuilder, c: ModelConfig, x: Buffer, slot: str, width: int) -> Buffer:
    """Factors of the streams, computed from one of them: [n, width]."""
    h = blocks.norm(g, c, x, "altup_router_norm")
    h = blocks.linear(g, c, g.scale(h, 1 / c.hidden_size, out=h), "altup_router", c.n_streams)
    return blocks.linear(g, c, g.softcap(h, 1.0, out=h), slot, width)


def _predict(g: GraphBuilder, c: ModelConfig, streams: Buffer) -> Buffer:
    """Each stream plus a mixture of all: [n, n_streams * hidden]."""
    first = g.take_columns(streams, 0, c.hidden_size)
    factors = _mixture(g, c, first, "altup_predict_coef", c.n_streams**2)
    mixed = g.mix_streams(streams, factors, c.n_streams)
    return g.add(mixed, streams, out=mixed)


def _correct(
    g: GraphBuilder, c: ModelConfig, predicted: Buffer, first: Buffer, y: Buffer
) -> Buffer:
    """What y adds to the first stream's prediction is added to each stream, times 1 plus a factor
    of the stream: [n, n_streams * hidden]."""
    factors = _mixture(g, c, y, "altup_correct_coef", c.n_streams)
    new = g.add(y, g.scale(first, -1.0, out=first), out=y)  # [n, hidden]
    corrected = g.add(g.mix_streams(new, factors, 1), predicted, out=predicted)
    return g.add_to_streams(corrected, new, out=corrected)


# ---- folders -------------------------------------------------------------------------------------


def _names(config: HFReader) -> Names:
    """Pictures and sounds have tokens without a row in the layers' table; files have zeros."""
    rows = config.integer("vocab_size", low=1)
    slots = Slots(("per_layer_token_embd",), rows=rows)
    return {**_NAMES, "embed_tokens_per_layer": slots}


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("altup_coef_clip", "vocab_size_per_layer_input")  # of training; tensors show it
    config.expect("altup_correct_scale", True)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    usual = np.arange(n_layers) % PERIOD != PERIOD - 1
    shares = _cut_shares(config, n_layers)
    cutoffs = [NormalDist().inv_cdf(each) if each else -np.inf for each in shares]
    return {
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": config.local_layers(usual),
        "attention.shared_kv_layers": config.integer("num_kv_shared_layers"),
        "embedding_length_per_layer_input": config.integer("hidden_size_per_layer_input"),
        "final_logit_softcapping": config.number("final_logit_softcapping"),
        "feed_forward_length": config.of_layers("intermediate_size", n_layers),
        _ACTIVE: config.integer("altup_active_idx", 0),
        _STREAMS: config.integer("altup_num_inputs"),
        _CUTOFFS: np.array(cutoffs, np.float32),
    }


def _cut_shares(config: HFReader, n_layers: int) -> list[float]:
    """For each layer the share of gates that is cut off."""
    cut = CUT_LAYERS if n_layers > CUT_LAYERS else 0
    usual = [0.95] * cut + [0.0] * (n_layers - cut)
    said = config.get("activation_sparsity_pattern", usual)
    numbers = (
        [each for each in said if isinstance(each, (int, float))] if type(said) is list else []
    )
    if len(numbers) != n_layers or not all(0.0 <= each < 1.0 for each in numbers):
        raise config.fault(
            f"activation_sparsity_pattern is no list of {n_layers} numbers from 0 to below 1"
        )
    return [float(each) for each in numbers]


FAMILY = Family(
    ("gemma3n",),
    (
        HuggingFace(
            "gemma3n_text",
            "gemma3n",
            _values,
            _names,
            activation="gelu_pytorch_tanh",
            tied=True,
            pictures="gemma3n",
            defaults={
                **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256},
                **{"vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384},
                **{"num_hidden_layers": 35, "sliding_window": 512, "rms_norm_eps": 1e-6},
                **{"hidden_size_per_layer_input": 256, "max_position_embeddings": 32768},
                **{"num_kv_shared_layers": 15, "altup_num_inputs": 4, "altup_active_idx": 0},
                **{"altup_correct_scale": True, "final_logit_softcapping": 30.0},
                **{"rope_theta": 1e6, "rope_local_base_freq": 10000.0},
            },
        ),
    ),
    configure,
    layer,
    embed,
    head,
    rotations=windowed_rotations,
)
