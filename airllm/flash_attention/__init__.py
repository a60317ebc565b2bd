"""FlashAttention's Python interface on CPUs: the functions of the packages flash-attn, by their
arguments, on the attention library.

Knows nothing of airllm. Arrays are NumPy's, PyTorch's, or any with DLPack, and are read and written
where they lie. In shapes, b stands for sequences, h for query heads, h_k for KV heads (query head i
reads KV head i // (h // h_k)), d for the elements of a query or key, d_v for those of a value.
Types are float32, float16, bfloat16 and float8_e4m3fn; NumPy has the last two from ml_dtypes.

What is the same everywhere:

    softmax_scale: of the scores; None: 1 / sqrt(d), or with qv 1 / sqrt(d + d_v)
    causal: query i sees key j only if j <= i + s_k - s_q
    window_size: (left, right): only keys from i + s_k - s_q - left to i + s_k - s_q + right; -1: no
        limit
    attention_chunk: only keys of the same chunk of so many positions; 0: all
    softcap: scores become softcap * tanh(score / softcap); 0: they stay
    q_descale, k_descale, v_descale: float32 (b, h_k): factors of float8 values
    num_splits: parts of the keys, computed on their own and combined; 0: as many as keep the
        threads busy
    pack_gqa, deterministic, sm_margin, scheduler_metadata: change nothing on a CPU, whose results
        are the same bits each time
    learnable_sink: float32 (h,): one more score for each head, which has no value
    threads: how many; None: those of TENSOR_OPS_NUM_THREADS, or one for each core

Results are a tensor of PyTorch if q is one, else a NumPy array, of q's type, or bfloat16 if that is
float8. A query that sees no key gets zeros, and -inf in softmax_lse; rows of no query are zeros.

Errors: TypeError for an argument of a wrong type, ValueError for a wrong shape or value,
NotImplementedError for what the library does not do (a gradient, dropout, ALiBi, more than 576
elements), ImportError where the library is missing. They name the argument.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from airllm.flash_attention.arrays import (
    TYPES,
    Array,
    array_of,
    dtype_name,
    indices,
    new_like,
)
from airllm.flash_attention.library import (
    ARRAYS,
    CAUSAL,
    DETERMINISTIC,
    NUMBERS,
    ROTARY_INTERLEAVED,
    SCALE_SET,
    TENSORS,
    CombineStruct,
    ForwardStruct,
    combine,
    forward,
)
from airllm.flash_attention.scalars import flag, int32, real

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
]

_NAMES = {
    **{"q_v": "qv", "lse": "softmax_lse", "sinks": "learnable_sink"},
    **{"window_left": "window_size[0]", "window_right": "window_size[1]"},
}
_CACHE_NAMES = {
    **{"k": "k_cache", "v": "v_cache", "k_new": "k", "v_new": "v", "seqused_k": "cache_seqlens"},
    **{"kv_batch_idx": "cache_batch_idx", "leftpad_k": "cache_leftpad"},
    "seqlens_rotary": "rotary_seqlens",
}
"""What the callers of the functions call the library's fields."""


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Any = None,
    q_descale: Any = None,
    k_descale: Any = None,
    v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    learnable_sink: Any = None,
    dropout_p: float = 0.0,
    alibi_slopes: Any = None,
    threads: int | None = None,
) -> Any:
    """Attention of sequences of one length.

    q: (b, s_q, h, d); k: (b, s_k, h_k, d); v: (b, s_k, h_k, d_v); qv: (b, s_q, h, d_v), for scores
    q k^T + qv v^T. The others, and errors: see the package. Returns out, (b, s_q, h, d_v); with
    return_attn_probs also softmax_lse, float32 (b, h, s_q): log(sum(exp(scores))).
    """
    _refuse_others(dropout_p, alibi_slopes)
    tensors = {"q": q, "k": k, "v": v, "q_v": qv, "sinks": learnable_sink}
    tensors |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    numbers = _numbers(window_size, attention_chunk, num_splits, pack_gqa, sm_margin)
    flags = CAUSAL * flag(causal, "causal") | DETERMINISTIC * flag(deterministic, "deterministic")
    scores = (softmax_scale, softcap)
    return _attend(tensors, {}, numbers, flags, scores, threads, return_attn_probs, _NAMES)


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Any = None,
    seqused_k: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Any = None,
    q_descale: Any = None,
    k_descale: Any = None,
    v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    block_table: Any = None,
    learnable_sink: Any = None,
    dropout_p: float = 0.0,
    alibi_slopes: Any = None,
    threads: int | None = None,
) -> Any:
    """Attention of sequences of different lengths, which lie one after another.

    q: (total_q, h, d); k: (total_k, h_k, d); v: (total_k, h_k, d_v); qv: (total_q, h, d_v).
    cu_seqlens_q, cu_seqlens_k: int32 (b + 1,): where each sequence begins, and where the last ends;
    max_seqlen_q, max_seqlen_k: no sequence is longer. seqused_q, seqused_k: int32 (b,): how many
    rows of each sequence count. block_table: int32 (b, n): k and v are pages, (pages, page_size,
    h_k, d), of which sequence i has those of row i; cu_seqlens_k then tells the lengths alone. The
    others, and errors: see the package. Returns out, (total_q, h, d_v); with return_attn_probs also
    softmax_lse, float32 (h, total_q).
    """
    _refuse_others(dropout_p, alibi_slopes)
    tensors = {"q": q, "k": k, "v": v, "q_v": qv, "sinks": learnable_sink}
    tensors |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    arrays = {"cu_seqlens_q": cu_seqlens_q, "seqused_q": seqused_q, "seqused_k": seqused_k}
    if block_table is None:
        arrays["cu_seqlens_k"] = cu_seqlens_k
    else:
        arrays["page_table"] = block_table
        if seqused_k is None:
            arrays["seqused_k"] = np.diff(indices(cu_seqlens_k, "cu_seqlens_k", (-1,)))
    numbers = _numbers(window_size, attention_chunk, num_splits, pack_gqa, sm_margin)
    numbers |= {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    flags = CAUSAL * flag(causal, "causal") | DETERMINISTIC * flag(deterministic, "deterministic")
    scores = (softmax_scale, softcap)
    names = _NAMES | {"page_table": "block_table"}
    if block_table is not None and seqused_k is None:
        names["seqused_k"] = "cu_seqlens_k"  # which has told it
    return _attend(tensors, arrays, numbers, flags, scores, threads, return_attn_probs, names)


def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    qv: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    page_table: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k_new: Any = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Any = None,
    q_descale: Any = None,
    k_descale: Any = None,
    v_descale: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Any = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    *,
    block_table: Any = None,
    learnable_sink: Any = None,
    alibi_slopes: Any = None,
    threads: int | None = None,
) -> Any:
    """Attention over a cache, to which new keys and values are appended before.

    q: (b, s_q, h, d), or with cu_seqlens_q, int32 (b + 1,), and max_seqlen_q (total_q, h, d).
    k_cache: (b, s_k, h_k, d); v_cache: (b, s_k, h_k, d_v); any number of rows with cache_batch_idx,
    int32 (b,): the row of each sequence; with page_table (or block_table), int32 (b, n), they are
    pages, (pages, page_size, h_k, d). cache_seqlens: how many keys there are, an int or int32 (b,);
    None: all. cache_leftpad: int32 (b,): the first key of each sequence.

    k: (b, s_new, h_k, d); v: (b, s_new, h_k, d_v): written into the caches behind cache_seqlens
    keys; with cu_seqlens_k_new, int32 (b + 1,), (total_new, h_k, ..). rotary_cos, rotary_sin:
    (s_ro, n / 2): they rotate the first n elements of k, and of q, at the positions from
    rotary_seqlens, int32 (b,), on; None: from cache_seqlens. rotary_interleaved: pairs are (0, 1),
    (2, 3).., else (0, n / 2), (1, n / 2 + 1)..

    The others, and errors: see the package. Returns out, as q with d_v in place of d; with
    return_softmax_lse also softmax_lse, float32 (b, h, s_q) or (h, total_q).
    """
    _refuse_others(0.0, alibi_slopes)
    tensors = {"q": q, "k": k_cache, "v": v_cache, "k_new": k, "v_new": v, "q_v": qv}
    tensors |= {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin, "sinks": learnable_sink}
    tensors |= {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    names = _NAMES | _CACHE_NAMES
    if block_table is not None:
        if page_table is not None:
            raise ValueError("page_table and block_table are the same; expected one of them")
        page_table, names["page_table"] = block_table, "block_table"
    if page_table is not None and cache_batch_idx is not None:  # which chooses rows of the table
        page_table, cache_batch_idx = _rows_of(page_table, cache_batch_idx), None
    arrays = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k_new": cu_seqlens_k_new}
    arrays |= {"seqused_k": cache_seqlens, "seqlens_rotary": rotary_seqlens}
    arrays |= {"kv_batch_idx": cache_batch_idx, "leftpad_k": cache_leftpad}
    arrays["page_table"] = page_table
    numbers = _numbers(window_size, attention_chunk, num_splits, pack_gqa, sm_margin)
    numbers["max_seqlen_q"] = max_seqlen_q or 0
    flags = CAUSAL * flag(causal, "causal")
    flags |= ROTARY_INTERLEAVED * flag(rotary_interleaved, "rotary_interleaved")
    scores = (softmax_scale, softcap)
    return _attend(tensors, arrays, numbers, flags, scores, threads, return_softmax_lse, names)


def flash_attn_combine(
    out_partial: Any,
    lse_partial: Any,
    out: Any = None,
    out_dtype: Any = None,
    *,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Combines partial results over parts of the keys.

    out_partial: float32 (splits, b, s, h, d); lse_partial: float32 (splits, b, s, h), -inf where a
    part has seen nothing. out: where the result goes, (b, s, h, d); None: a new array of out_dtype
    (None: float32). Returns (out, softmax_lse), the second float32 (b, s, h).
    """
    given = array_of(out_partial, "out_partial")
    if out is None:
        dtype = "float32" if out_dtype is None else dtype_name(out_dtype, "out_dtype")
        if dtype not in TYPES:
            raise TypeError(f"out_dtype is {dtype}; expected one of {', '.join(TYPES)}")
        out = new_like(out_partial, given.shape[1:], dtype, zeros=False)
    lse = new_like(out_partial, given.shape[1:-1], "float32", zeros=False)
    fields = {"out_partial": out_partial, "lse_partial": lse_partial, "out": out, "lse": lse}
    kept = {name: array_of(x, name) for name, x in fields.items()}
    _writable(kept["out"], "out")
    params = CombineStruct(struct_size=ctypes.sizeof(CombineStruct))
    for name, array in kept.items():
        setattr(params, name, array.tensor(name))
    combine(params, threads)
    return out, lse


def _attend(
    tensors: Mapping[str, Any],
    arrays: Mapping[str, Any],
    numbers: Mapping[str, int],
    flags: int,
    scores: tuple[float | None, float],
    threads: int | None,
    with_lse: bool,
    names: Mapping[str, str],
) -> Any:
    """One call of fa_fwd: its fields by the library's names, softmax_scale and softcap together."""
    known = {field: names.get(field, field) for field in (*TENSORS, *ARRAYS, *NUMBERS)}
    there = {
        field: array_of(x, known[field])
        for field, x in tensors.items()
        if x is not None or field in "qkv"
    }
    together = arrays.get("cu_seqlens_q") is not None
    queries, values = there["q"], there["v"]
    rank = 3 if together else 4
    if len(queries.shape) != rank:
        raise ValueError(f"q has the shape {queries.shape}; expected {rank} dimensions")
    if len(values.shape) < 1:
        raise ValueError(f"{known['v']} has no dimensions")
    lists = _index_arrays(arrays, known, queries)
    batch = len(lists["cu_seqlens_q"]) - 1 if together else queries.shape[0]
    if "k_new" in there:
        for field in "kv":
            _writable(there[field], known[field])

    # Rows of no query are not written.
    zeros = together or "seqused_q" in lists
    shape = (*queries.shape[:-1], values.shape[-1])
    dtype = "bfloat16" if queries.dtype == "float8_e4m3fn" else queries.dtype
    queries.tensor("q")  # refuses other types before there is a result of one
    out = new_like(tensors["q"], shape, dtype, zeros)
    there["out"] = array_of(out, "out")
    lse = None
    if with_lse:
        *rows, heads = queries.shape[:-1]
        lse_shape = (heads, rows[0]) if together else (rows[0], heads, rows[1])
        lse = new_like(tensors["q"], lse_shape, "float32", zeros)
        there["lse"] = array_of(lse, "lse")

    params = ForwardStruct(struct_size=ctypes.sizeof(ForwardStruct), flags=flags, batch=batch)
    for field, array in there.items():
        setattr(params, field, array.tensor(known[field]))
    for field, indices_of in lists.items():
        setattr(params, field, indices_of.ctypes.data)
    if "page_table" in lists:
        params.page_table_columns = lists["page_table"].shape[1]
    for field, number in numbers.items():
        setattr(params, field, int32(number, known[field]))
    scale, softcap = scores
    params.softcap = real(softcap, "softcap")
    if scale is not None:
        params.flags |= SCALE_SET
        params.softmax_scale = real(scale, "softmax_scale")
    forward(params, threads, names)
    return (out, lse) if with_lse else out


def _index_arrays(
    arrays: Mapping[str, Any], known: Mapping[str, str], queries: Array
) -> dict[str, Any]:
    """Those that are there as int32, of the sizes that they must have for this many sequences."""
    starts = arrays.get("cu_seqlens_q")
    if starts is None:
        batch = queries.shape[0]
    else:
        batch = len(indices(starts, "cu_seqlens_q", (-1,))) - 1
        if batch < 1:
            raise ValueError("cu_seqlens_q has no sequence; expected 2 numbers or more")
    made: dict[str, Any] = {}
    for field, x in arrays.items():
        if x is None:
            continue
        if field == "seqused_k" and isinstance(x, int | np.integer):
            x = np.full(batch, x)
        shape = (batch + field.startswith("cu_"),)
        if field == "page_table":
            shape = (batch, -1)  # type: ignore[assignment]
        made[field] = indices(x, known[field], shape)
    return made


def _numbers(
    window_size: Any, attention_chunk: int, num_splits: int, pack_gqa: bool | None, sm_margin: int
) -> dict[str, int]:
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise ValueError(f"window_size is {window_size!r}; expected (left, right)") from None
    return {
        "window_left": left,
        "window_right": right,
        "attention_chunk": attention_chunk,
        "num_splits": num_splits,
        "pack_gqa": -1 if pack_gqa is None else flag(pack_gqa, "pack_gqa"),
        "sm_margin": sm_margin,
    }


def _rows_of(page_table: Any, cache_batch_idx: Any) -> Any:
    table = indices(page_table, "page_table", (-1, -1))
    rows = indices(cache_batch_idx, "cache_batch_idx", (-1,))
    for row in rows:
        if not 0 <= row < len(table):
            raise ValueError(f"cache_batch_idx has {row}; page_table has {len(table)} rows")
    return table[rows]


def _writable(array: Array, name: str) -> None:
    if not array.writable:
        raise ValueError(f"{name} is read-only; expected memory for what is written")


def _refuse_others(dropout_p: float, alibi_slopes: Any) -> None:
    """Of flash-attn 2, what FlashAttention-3 has no more."""
    if real(dropout_p, "dropout_p") != 0:
        raise NotImplementedError(f"dropout_p is {dropout_p}; expected 0: there is no dropout")
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes is there; expected None: there is no ALiBi")
