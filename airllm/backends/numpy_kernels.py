"""What computes each op of a graph, in NumPy."""

from collections.abc import Callable, Mapping

from airllm.backends import numpy_attention as attention
from airllm.backends import numpy_blocks as blocks
from airllm.backends import numpy_dense as dense
from airllm.backends import numpy_elementwise as elementwise
from airllm.backends import numpy_experts as experts
from airllm.backends import numpy_groups as groups
from airllm.backends import numpy_recurrent as recurrent
from airllm.backends import numpy_slices as slices
from airllm.backends import numpy_sparse as sparse
from airllm.backends import numpy_streams as streams
from airllm.backends.numpy_batch import TokenBatch
from airllm.graph.graph import Op

__all__ = ["OPS"]

OPS: Mapping[str, Callable[[Op, TokenBatch], None]] = {
    "embed": dense.embed,
    "rms_norm": dense.rms_norm,
    "head_norm": dense.head_norm,
    "bias": dense.bias,
    "linear": dense.linear,
    "layer_norm": dense.layer_norm,
    "quantized_norm": dense.rms_norm,  # exact, as linear is
    "linear_many": dense.linear_many,
    "linear_add": dense.linear_add,
    "glu_linear": dense.glu_linear,
    "swiglu": elementwise.swiglu,
    "geglu": elementwise.geglu,
    "softcap": elementwise.softcap,
    "add": elementwise.add,
    "sigmoid": elementwise.sigmoid,
    "softplus": elementwise.softplus,
    "relu_squared": elementwise.relu_squared,
    "swiglu_oai": elementwise.swiglu_oai,
    "scale": elementwise.scale,
    "scale_rows": elementwise.scale_rows,
    "clamp": elementwise.clamp,
    "signed_root": elementwise.signed_root,
    "keep_above": elementwise.keep_above,
    "multiply": elementwise.multiply,
    "silu": elementwise.silu,
    "gelu": elementwise.gelu,
    "gelu_erf": elementwise.gelu_erf,
    "xielu": elementwise.xielu,
    "rope": attention.rope,
    "kv_append": attention.kv_append,
    "latent_append": attention.latent_append,
    "attention": attention.attention,
    "rope_append": attention.rope_append,
    "index_append": sparse.index_append,
    "index_select": sparse.index_select,
    "sparse_attention": sparse.sparse_attention,
    "block_mean": blocks.block_mean,
    "choose_blocks": blocks.choose_blocks,
    "block_attention": blocks.block_attention,
    "pool_groups": groups.pool_groups,
    "group_append": groups.group_append,
    "group_attention": groups.group_attention,
    "sparse_group_attention": groups.group_attention,
    "route": experts.route,
    "route_to": experts.route_to,
    "expert_linear": experts.expert_linear,
    "expert_sum": experts.expert_sum,
    "expert_bias": experts.expert_bias,
    "expert_scale": experts.expert_scale,
    "scale_shares": experts.scale_shares,
    "conv": recurrent.conv,
    "delta_rule": recurrent.delta_rule,
    "ssm_scan": recurrent.ssm_scan,
    "selective_scan": recurrent.selective_scan,
    "l2_norm": recurrent.l2_norm,
    "log_decay": recurrent.log_decay,
    "group_norm": recurrent.group_norm,
    "residual_attention": streams.residual_attention,
    "mix_streams": streams.mix_streams,
    "hyper_factors": streams.hyper_factors,
    "hyper_mix": streams.hyper_mix,
    "add_to_streams": streams.add_to_streams,
    "match_rms": streams.match_rms,
    "stream_products": streams.stream_products,
    "head_linear": slices.head_linear,
    "take_head_columns": slices.take_head_columns,
    "join_heads": slices.join_heads,
    "round_q8": slices.round_q8,
    "merge_add": slices.merge_add,
    "take_columns": slices.take_columns,
    "layer_columns": slices.layer_columns,
    "put_columns": slices.put_columns,
}
