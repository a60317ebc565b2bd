"""What a decoder-only transformer is made of: of the whole model, and of each layer."""

from dataclasses import dataclass, replace
from typing import Literal

from airllm.graph.vocabulary import Gating

__all__ = [
    "BlockIndexer",
    "DeltaNet",
    "Factors",
    "HyperConnections",
    "Indexer",
    "Latent",
    "LayerConfig",
    "Mamba",
    "Mamba2",
    "Mixer",
    "ModelConfig",
    "NGramTable",
    "Router",
    "SharedKey",
    "Xielu",
]

Mixer = Literal[
    "attention", "attention and mamba2", "delta_net", "mamba", "mamba2", "short_conv", "none"
]


@dataclass(frozen=True)
class Xielu:
    """Of an activation with learned numbers (arXiv:2411.13010); see GraphBuilder.xielu."""

    positive: float
    negative: float
    beta: float
    eps: float


@dataclass(frozen=True)
class LayerConfig:
    """What may differ between the layers of a model. Equal layers share a graph.

    window: positions that a token sees, its own too; 0: all.
    rotates: whether rope turns queries and keys.
    has_experts: whether the feed-forward network is a mixture of experts.
    keys_of: the earlier layer whose keys and values it reads; None: it has its own.
    keys_are_values: whether V is what K is made of.
    head_dim, n_heads, n_kv_heads, rope_dims, intermediate_size: in place of ModelConfig's; 0: as
    there.
    has_sinks: whether each head has one more score, without a value.
    fused_qkv: whether Q, K and V come from one matrix.
    expert_limit, shared_limit: see ModelConfig.swiglu_limit; of the experts, and of the network or
    expert that all tokens use.
    selects: whether it selects the positions that tokens see; else an earlier layer has done it.
    chooses: whether it chooses blocks of positions (ModelConfig.block_indexer); else it sees all.
    has_ngrams: whether it adds what ModelConfig.ngrams gives.
    mixer: how tokens see earlier tokens; "none": the layer has no such part.
    n_earlier, keeps_residual: see ModelConfig.residual_block. How many residuals are kept before
    the layer, and whether it keeps its own.
    compression: positions of a group that has one key together, which tokens see beside the window;
    0: there are none. hashed: whether a table has the experts of each token of the vocabulary.
    xielu: what is particular to its activation, see Xielu; None: it has another.
    ends_normed: whether the last norm of the model follows it.
    cutoff: gates below the mean and so many standard deviations of a token's gates are 0; None: all
    count.
    """

    window: int = 0
    rotates: bool = True
    has_experts: bool = False
    keys_of: int | None = None
    keys_are_values: bool = False
    head_dim: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    rope_dims: int = 0
    intermediate_size: int = 0
    has_sinks: bool = False
    fused_qkv: bool = False
    expert_limit: float = 0.0
    shared_limit: float = 0.0
    selects: bool = True
    chooses: bool = False
    has_ngrams: bool = False
    mixer: Mixer = "attention"
    n_earlier: int = 0
    keeps_residual: bool = False
    ends_normed: bool = False
    cutoff: float | None = None
    compression: int = 0
    hashed: bool = False
    xielu: Xielu | None = None


@dataclass(frozen=True)
class Router:
    """How a token's experts are chosen, and how their outputs are weighted; see
    GraphBuilder.route."""

    gating: Gating = "softmax"
    normalized: bool = True  # the shares of a token's experts sum to 1
    scale: float = 1.0  # what the shares are multiplied by in the end
    biased: bool = False  # a bias for each expert counts in the choice, and in nothing else
    bias_slot: str = "exp_probs_b.bias"
    n_groups: int = 1
    n_groups_used: int = 1
    group_score: Literal["top2", "max"] = "top2"


@dataclass(frozen=True)
class Latent:
    """Keys and values that all heads compute from one latent of a token (arXiv:2405.04434).

    rank: values of a latent. query_rank: likewise of queries; 0: they have none. unrotated:
    dimensions of a head's queries before the ones that rotate. value_dim: of a head's values.
    gate: whether each value, or each head, is multiplied by the sigmoid of a gate; "": neither.
    norm_eps: of the norms of latents; 0: as other norms have it.
    """

    rank: int
    query_rank: int
    unrotated: int
    value_dim: int
    gate: Literal["", "values", "heads"] = ""
    norm_eps: float = 0.0


@dataclass(frozen=True)
class SharedKey:
    """Attention whose heads share one key, which is the value, too (DeepSeek V4). Queries come from
    query_rank values; the heads' outputs, in n_groups equal groups, become output_rank values
    each."""

    query_rank: int
    n_groups: int
    output_rank: int


@dataclass(frozen=True)
class HyperConnections:
    """How a layer's parts see several residual streams (arXiv:2512.24880); see
    GraphBuilder.hyper_factors. magnitude: of the factors by which a part's output is added."""

    n_iterations: int
    eps: float
    magnitude: float = 2.0


@dataclass(frozen=True)
class Indexer:
    """How a token selects the positions that it sees (arXiv:2512.02556); see
    GraphBuilder.index_select.

    n_heads, head_dim: of the index's queries. interleaved: whether they rotate pairs of neighbours.
    shared: whether layers see what an earlier layer selected (LayerConfig.selects). rotates_last:
    whether the last dimensions of a head rotate, and not the first. norm_eps: of the keys' norm.
    pool: positions that have one key together, and are selected together.
    """

    n_heads: int
    head_dim: int
    n_selected: int
    interleaved: bool
    shared: bool = False
    rotates_last: bool = False
    norm_eps: float = 1e-6
    pool: int = 1


@dataclass(frozen=True)
class BlockIndexer:
    """How a token chooses the blocks of positions that it sees; see GraphBuilder.choose_blocks.

    n_heads, head_dim: of the index's queries. n_local: of the chosen blocks, how many are the last
    ones in any case. pooled: a key is that of a block, and the heads choose together.
    """

    n_heads: int
    head_dim: int
    block_size: int
    n_chosen: int
    n_local: int = 0
    pooled: bool = False


@dataclass(frozen=True)
class NGramTable:
    """Rows of a table, chosen by hashes of a token and of those before it; see models.ngrams.

    A row is for an n-gram of 2 tokens to multipliers' number, heads_per_size rows for each. Row
    number h of a token is one of vocab_sizes[h] rows from offsets[h] on, each of row_width values.
    end: the token before which nothing counts, and in place of tokens that are not there.
    """

    multipliers: tuple[int, ...]
    heads_per_size: int
    vocab_sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    row_width: int
    end: int

    @property
    def width(self) -> int:
        """The values of a token's rows."""
        return len(self.offsets) * self.row_width


@dataclass(frozen=True)
class Mamba:
    """A layer's scan (arXiv:2312.00752), see GraphBuilder.selective_scan.

    inner_size: channels that are scanned. rank: of the matrix that gives their time steps. taps: of
    the convolution before the scan. conv_biased: whether it has a bias. norms: of B, C and the
    rank's values; "plain": without weights. norm_eps: of these.
    """

    inner_size: int
    state_size: int
    rank: int
    taps: int
    conv_biased: bool
    norms: Literal["", "plain", "weighted"]
    norm_eps: float


@dataclass(frozen=True)
class Mamba2:
    """A layer's scan (arXiv:2405.21060), see GraphBuilder.ssm_scan.

    inner_size: values of a token that are scanned, of all heads together. taps: of the convolution
    before the scan. conv_biased: whether it has a bias. dt_limits: of the time steps. normed:
    whether groups of the gated output are normalised. factors: of the gate, x, B, C and dt.
    """

    inner_size: int
    n_heads: int
    state_size: int
    n_groups: int
    taps: int
    conv_biased: bool
    dt_limits: tuple[float, float]
    normed: bool = True
    factors: tuple[float, ...] = (1.0,) * 5

    @property
    def conv_width(self) -> int:
        """The values of a token that the convolution takes: x, B and C."""
        return self.inner_size + 2 * self.n_groups * self.state_size


@dataclass(frozen=True)
class Factors:
    """Of what the matrices of these slots give, where the file has the matrices without them."""

    attn_output: float = 1.0
    ssm_out: float = 1.0
    ffn_gate: float = 1.0
    ffn_down: float = 1.0


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention by the gated delta rule (arXiv:2412.06464); see graph.ops.

    n_heads: of values; they share n_kv_heads heads of queries and keys. key_dim, value_dim: of a
    head. taps: of the convolution before it. tiled: head h uses the keys of head h % n_kv_heads,
    not of head h // (n_heads / n_kv_heads). decay_bound: of the decays' logarithms, below 0; 0:
    they have none.
    """

    n_heads: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    taps: int
    tiled: bool
    decay_bound: float = 0.0
    gate: Literal["silu", "sigmoid"] = "silu"  # of the gated norm

    @property
    def key_width(self) -> int:
        return self.n_kv_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.n_heads * self.value_dim


@dataclass(frozen=True)
class ModelConfig:
    """See airllm.models.config_reader for the keys of GGUF files that these values come from."""

    architecture: str  # GGUF's name
    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of the feed-forward network; without dense layers that of an expert
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int  # of the keys that are kept
    norm_eps: float
    context_length: int  # tokens that the model was trained for, or fewer that are implemented
    rope_dims: int  # dimensions of a head that rotate, from the first on
    tied_embeddings: bool  # the output matrix is the embedding
    layers: tuple[LayerConfig, ...]
    attention_scale: float  # what q k^T is multiplied by
    value_dim: int = 0  # of a head's values; 0: as head_dim
    value_scale: float = 1.0  # what values are multiplied by
    qkv_limit: float = 0.0  # queries, keys and values are cut off at +-limit; 0: they are not
    # Which dimensions of a head rope rotates as a pair. True: neighbours. False: j and
    # j + rope_dims / 2.
    rope_interleaved: bool = False
    after_eps: float = 0.0  # of the norms behind the halves of a layer; 0: norm_eps
    layer_norms: bool = False  # norms subtract the mean: LayerNorm in place of RMSNorm
    plain_norms: bool = False  # which then have no weights
    head_norms: bool = False  # each head of Q and K is normalised
    biases: frozenset[str] = frozenset()  # slots that have a bias
    learned_positions: bool = False  # a table has what is added to a token at each position
    parallel_halves: bool = False  # both halves of a layer see what came before the layer
    attention_temperature: float = 0.0  # queries grow with the logarithm of their position
    alibi: float = 0.0  # scores fall with the distance, see GraphBuilder.attention; 0: they do not
    attention_softcap: float = 0.0  # scores are capped smoothly to +-softcap; 0: they are not
    final_softcap: float = 0.0  # logits likewise
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each half of a layer adds to the residual
    logit_scale: float = 1.0
    n_experts: int = 0
    n_experts_used: int = 0  # by each token
    expert_size: int = 0  # the intermediate size of an expert
    shared_expert_size: int = 0  # of the expert that all tokens use; 0: there is none
    shared_expert_gated: bool = False  # its output is multiplied by a sigmoid of its input
    latent: Latent | None = None
    indexer: Indexer | None = None
    block_indexer: BlockIndexer | None = None
    ngrams: NGramTable | None = None
    ngram_taps: int = 0  # of the convolution behind them
    shared_key: SharedKey | None = None
    hyper: HyperConnections | None = None  # of n_streams streams
    delta_net: DeltaNet | None = None
    # Of gpt-oss's activation, see GraphBuilder.swiglu_oai: the limit, or 0 for SwiGLU in its place;
    # alpha; what is added to the up values.
    gate_limit: float = 0.0
    gate_alpha: float = 1.702
    up_shift: float = 1.0
    swiglu_limit: float = 0.0  # of SwiGLU's two factors: silu(g) below, |u|; 0: they have none
    gate_of_values: bool = False  # attention's gate has a number for each value, not for each head
    router: Router = Router()
    router_softcap: float = 0.0  # of logits of experts, smoothly, to +-softcap; 0: none
    layers_scaled: bool = False  # each layer multiplies the residual by a scalar in the end
    per_layer_size: int = 0  # of what a token's own embedding of each layer adds; 0: there is none
    n_streams: int = 1  # residual streams of a token, side by side
    stream_rank: int = 0  # of the gates that mix them
    laurel_rank: int = 0  # of the matrix that the attention's input goes through beside it
    expert_hidden_size: int = 0  # of a token as experts see it; 0: as the residual
    mamba: Mamba | None = None
    mamba2: Mamba2 | None = None
    factors: Factors = Factors()
    short_conv_taps: int = 0
    # Of each so many layers the first keeps the residual that it gets, and begins it anew. Layers
    # see a mean of the kept ones and of their own. 0: there is one residual.
    residual_block: int = 0
    # Of the activation softcap(g) * sigmoid(g) * softcap(u). 0: of u, that it is not capped; of g,
    # another activation.
    activation_caps: tuple[float, float] = (0.0, 0.0)
    group_expert_size: int = 0  # likewise of a network for each group of experts; 0: there is none
    group_scale: float = 1.0  # of what these give
    experts_normed: bool = False  # the sum of a token's experts is normalised
    # Times that a token goes through the layers of the file; `layers` has them as often.
    n_loops: int = 1
    left_out: range = range(0)  # layers of the file behind the last: next-token heads
    head_layer: LayerConfig = LayerConfig()  # of the first of them, in families that it is read for
    idle_tensors: frozenset[str] = frozenset()  # that files may have and nothing reads

    def of(self, layer: LayerConfig) -> "ModelConfig":
        """The configuration with a layer's own sizes."""
        return replace(
            self,
            head_dim=layer.head_dim or self.head_dim,
            n_heads=layer.n_heads or self.n_heads,
            n_kv_heads=layer.n_kv_heads or self.n_kv_heads,
            rope_dims=layer.rope_dims or self.rope_dims,
            intermediate_size=layer.intermediate_size or self.intermediate_size,
        )

    @property
    def n_stored_layers(self) -> int:
        """The layers whose weights the file has."""
        return self.n_layers // self.n_loops

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer; 0 where a layer sees all positions."""
        return tuple(layer.window for layer in self.layers)

    @property
    def share_of_experts(self) -> float:
        """The part of each layer's experts that a token uses."""
        return self.n_experts_used / self.n_experts if self.n_experts else 1.0

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def v_width(self) -> int:
        return self.n_kv_heads * (self.value_dim or self.head_dim)
