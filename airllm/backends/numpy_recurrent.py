"""What the ops with recurrent memory compute, and those beside them, in NumPy."""

from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op
from airllm.numpy_ops import recurrent as ops
from airllm.numpy_ops.recurrent import RecurrentSequence

__all__ = [
    "conv",
    "delta_rule",
    "group_norm",
    "l2_norm",
    "log_decay",
    "selective_scan",
    "ssm_scan",
]


def _states(op: Op, batch: TokenBatch, shape: tuple[int, ...]) -> list[RecurrentSequence]:
    """The memory that the op has of each sequence."""
    first = batch.recurrent_first[id(op)]
    n = 1
    for size in shape:
        n *= size
    return [
        RecurrentSequence(s.n_tokens, s.kept.recurrent(s.layer)[first : first + n].reshape(shape))
        for s in batch.sequences
    ]


def conv(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    dilation = int(op.attrs["dilation"])
    states = _states(op, batch, (dilation, int(op.attrs["taps"]) - 1, x.shape[1]))
    weight, silu = batch.weights[op.weights[0]], bool(op.attrs["silu"])
    # Tokens whose positions are alike modulo the dilation are a sequence of their own.
    for s, (n_tokens, state) in zip(batch.sequences, states, strict=True):
        for phase in range(min(dilation, n_tokens)):
            rows = slice(s.first + phase, s.first + n_tokens, dilation)
            own = state[(s.past + phase) % dilation]
            part = x[rows].copy()
            alone = [RecurrentSequence(len(part), own)]
            ops.causal_conv_apply(part, weight, None, silu, alone, part)
            out[rows] = part


def delta_rule(op: Op, batch: TokenBatch) -> None:
    q, k, v, decay, beta, out = arrays(op, batch)
    n, n_heads, n_kv_heads = len(q), int(op.attrs["n_heads"]), int(op.attrs["n_kv_heads"])
    d_k, d_v = q.shape[1] // n_kv_heads, v.shape[1] // n_heads
    ops.delta_rule_apply(
        q.reshape(n, n_kv_heads, d_k),
        k.reshape(n, n_kv_heads, d_k),
        v.reshape(n, n_heads, d_v),
        decay if decay.shape[1] == n_heads else decay.reshape(n, n_heads, d_k),
        beta,
        bool(op.attrs["tiled"]),
        float(op.attrs["scale"]),
        _states(op, batch, (n_heads, d_k, d_v)),
        out.reshape(n, n_heads, d_v),
    )


def ssm_scan(op: Op, batch: TokenBatch) -> None:
    x, dt, b, c, out = arrays(op, batch)
    n, n_heads, n_groups = len(x), dt.shape[1], int(op.attrs["n_groups"])
    head_dim, d_state = x.shape[1] // n_heads, b.shape[1] // n_groups
    a, skip, bias = (batch.weights[name] for name in op.weights)
    ops.ssm_scan_apply(
        x.reshape(n, n_heads, head_dim),
        dt,
        b.reshape(n, n_groups, d_state),
        c.reshape(n, n_groups, d_state),
        a,
        skip,
        bias,
        (float(op.attrs["dt_min"]), float(op.attrs["dt_max"])),
        _states(op, batch, (n_heads, head_dim, d_state)),
        out.reshape(n, n_heads, head_dim),
    )


def selective_scan(op: Op, batch: TokenBatch) -> None:
    x, dt, b, c, out = arrays(op, batch)
    a = batch.weights[op.weights[0]]
    ops.selective_scan_apply(x, dt, b, c, a, _states(op, batch, a.shape), out)


def l2_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    heads = len(x), int(op.attrs["n_heads"]), -1
    ops.l2_norm_apply(x.reshape(heads), float(op.attrs["eps"]), out.reshape(heads))


def log_decay(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    a, bias = (batch.weights[name] for name in op.weights)
    ops.log_decay_apply(x, bias, a, out, float(op.attrs["bound"]))


def group_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    weight, eps = batch.weights[op.weights[0]], float(op.attrs["eps"])
    ops.group_norm_apply(x, weight, int(op.attrs["n_groups"]), eps, out)
