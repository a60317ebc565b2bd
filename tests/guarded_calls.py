"""Calls of every operation with arrays between two pages that nobody may touch.

Run by test_cpp_guard_pages.py in a process of its own, which a read or write beside an array ends.
"""

import ctypes
import mmap

import numpy as np
import tensor_ops_cpp as cpp

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PAGE = mmap.PAGESIZE

# Every tail of a vector of 16 floats and of four of them, and a batch beyond one chunk of work.
SIZES = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63, 64, 65, 127, 2049]
# type: values in a block, bytes of a block
BLOCKS = {
    **{"q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24)},
    **{"q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176)},
    **{"q6_k": (256, 210), "iq4_nl": (32, 18), "iq4_xs": (256, 136), "mxfp4": (32, 17)},
    **{"iq3_xxs": (256, 98), "iq3_s": (256, 110)},
    **{"iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82)},
    **{"iq1_s": (256, 50), "iq1_m": (256, 56)},
    **{"tq1_0": (256, 54), "tq2_0": (256, 66), "nvfp4": (64, 36)},
}
WRITTEN = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4")
WEIGHTED = ("q4_0", "q5_1", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


class Fence:
    """Makes arrays whose last byte (or, at_end False, whose first) lies beside a closed page."""

    def __init__(self, at_end):
        self.at_end = at_end
        self._kept = []

    def array(self, values):
        values = np.ascontiguousarray(values)
        pages = -(-max(values.nbytes, 1) // _PAGE)
        memory = mmap.mmap(-1, (pages + 2) * _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for closed in (start, start + (pages + 1) * _PAGE):
            if _libc.mprotect(closed, _PAGE, 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = _PAGE + (pages * _PAGE - values.nbytes if self.at_end else 0)
        view = np.frombuffer(memory, values.dtype, values.size, offset).reshape(values.shape)
        view[...] = values
        self._kept.append(memory)
        return view

    def empty(self, *shape, dtype=np.float32):
        return self.array(np.zeros(shape, dtype))


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def blocks(type, n, k):
    """Rows of a type as a file has them, with scales that are small numbers."""
    if type in ("f32", "f16"):
        return normal(n, k).astype({"f32": np.float32, "f16": np.float16}[type]).view(np.uint8)
    if type == "bf16":
        return (normal(n, k).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    values, size = BLOCKS[type]
    per_row = k // values * size
    return np.random.default_rng(n + k).integers(0, 60, (n, per_row), np.uint8)


def elementwise(f):
    for n in SIZES:
        x, y = normal(n), normal(n) + 1
        for name in ("silu", "gelu", "softmax"):
            yield f"{name} {n}", getattr(cpp, name), (x,), {}
        yield f"gelu none {n}", cpp.gelu, (x, "none"), {}
        yield f"swiglu {n}", cpp.swiglu, (x, y), {}
        yield f"rms_norm {n}", cpp.rms_norm, (x, y), {}
        yield f"rows of softmax {n}", cpp.softmax, (normal(3, n),), {}
        yield f"rows of rms_norm {n}", cpp.rms_norm, (normal(3, n), y), {}
    for d, dims in [(2, 2), (6, 6), (34, 34), (64, 64), (70, 6), (70, 66), (33, 0), (33, 32)]:
        positions = np.arange(3, dtype=np.int32)
        inv_freq = (1 / np.arange(1, dims // 2 + 1)).astype(np.float32)
        for interleaved in (False, True):
            options = {"interleaved": interleaved}
            yield f"rope {d}", cpp.rope, (normal(3, 2, d), positions, inv_freq), options
    # An output so large that it is written past the caches.
    yield "large softmax", cpp.softmax, (normal(1025, 4095),), {}
    yield "large rms_norm", cpp.rms_norm, (normal(1025, 4095), normal(4095)), {}


def conversions(f):
    for n in SIZES:
        x = normal(n)
        yield f"float32_to_float16 {n}", cpp.float32_to_float16, (x,), None
        yield f"float32_to_bfloat16 {n}", cpp.float32_to_bfloat16, (x,), None
        yield f"float16_to_float32 {n}", cpp.float16_to_float32, (x.astype(np.float16),), None
        yield f"bfloat16_to_float32 {n}", cpp.bfloat16_to_float32, (x.astype(np.uint16),), None
    for n in (1, 3, 8):
        for type in BLOCKS:
            yield f"dequantize {type}", cpp.dequantize, (blocks(type, 1, 256 * n), type), None
        for type in WRITTEN:
            yield f"quantize {type}", cpp.quantize, (normal(32 * n), type), None
        for type in WEIGHTED:
            x, importance = normal(2, 256 * n), np.ones(256 * n, np.float32)
            yield f"quantize {type}", cpp.quantize, (x, type, importance), None
    yield "sample", cpp.sample, (normal(1000), 0.5), None
    yield "sample top_k", lambda x: cpp.sample(x, 0.5, top_k=3, top_p=0.9), (normal(131),), None


def products(f):
    for m in (1, 2, 3, 5, 13, 17):
        for k, n in [(1, 1), (7, 3), (32, 33), (65, 31), (129, 130), (33, 1030), (64, 4097)]:
            if m > 3 and n > 1030:
                continue
            yield f"matmul {m} {k} {n}", cpp.matmul, (normal(m, k), normal(k, n)), {}
            yield f"linear f32 {m} {k} {n}", cpp.linear, (normal(m, k), normal(n, k)), {}
            half = normal(n, k).astype(np.float16)
            yield f"linear f16 {m} {k} {n}", cpp.linear, (normal(m, k), half), {}


def packed_products(f):
    for type in ["f32", "f16", "bf16", *BLOCKS]:
        for n, k in [(1, 256), (9, 256), (33, 512)]:
            data = f.array(blocks(type, n, k))
            w = cpp.PackedMatrix(data, type, (n, k))
            yield f"dequantize {type} {n} {k}", lambda w=w: w.dequantize(), (), None
            for m in (1, 2, 5, 9):
                for activations in ("f32", "q8", "q16"):
                    options = {"activations": activations}
                    label = f"linear {type} {activations} {m} {n} {k}"
                    yield label, lambda x, w=w, **o: cpp.linear(x, w, **o), (normal(m, k),), options


def attention(f):
    kinds = {
        "float32": lambda *shape: normal(*shape),
        "float16": lambda *shape: normal(*shape).astype(np.float16),
        "q8_0": lambda h, n, d: cpp.quantize(normal(h, n, d), "q8_0"),
    }
    for kind, cache in kinds.items():
        for d in (32, 160) if kind == "q8_0" else (1, 20, 97, 256):
            for n_q, n_kv in [(1, 1), (1, 13), (1, 600), (3, 70), (9, 1025), (40, 41)]:
                arrays = normal(n_q, 4, d), cache(2, n_kv, d), cache(2, n_kv, d)
                for window, chunked in ((None, False), (89, False), (89, True)):
                    options = {"window": window, "chunked": chunked}
                    options |= {"sinks": f.array(normal(4)), "softcap": 5.0}
                    label = f"attention {kind} {d} {n_q} {n_kv} {window} {chunked}"
                    yield label, cpp.attention, arrays, options
        ends = f.array(np.array([0, 2, 2, 7], np.int32))
        options = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "causal": False}
        arrays = normal(7, 4, 32), cache(2, 7, 32), cache(2, 7, 32)
        yield f"attention {kind} of sequences", cpp.attention, arrays, options


GROUPS = [elementwise, conversions, products, packed_products, attention]


def run_ops(group, at_end):
    """Each call with fenced arrays gives the same bits as with arrays that lie anywhere."""
    f = Fence(at_end)
    for label, call, arrays, options in group(f):
        print(label, flush=True)
        given = [f.array(a) if isinstance(a, np.ndarray) else a for a in arrays]
        names = {"inv_freq": given.pop(2)} if label.startswith("rope") else {}
        plain = list(arrays)
        plain_names = {"inv_freq": plain.pop(2)} if names else {}
        expected = call(*plain, **plain_names, **(options or {}))
        if options is None:
            result = call(*given)
        else:
            out = f.array(np.full(expected.shape, 7, np.float32))
            result = call(*given, **names, **options, out=out)
        assert np.asarray(result).tobytes() == np.asarray(expected).tobytes(), label


# ---- the executor --------------------------------------------------------------------------------

H, KV, D = 4, 2, 32  # heads, heads of keys and values, values of each
HEADS = {"n_heads": H, "head_dim": D}
KVS = {"n_kv_heads": KV, "head_dim": D}
GROUPED = {"scale": 0.2, "window": 3, "every": 2}
E, U = 3, 2  # experts, of each token

# op: widths of inputs, widths of outputs, weights, attributes
OPS = {
    "rms_norm": ([33], [33], [("vector", 33)], {"eps": 1e-6}),
    "quantized_norm": ([64], [64], [("vector", 64)], {"eps": 1e-6}),
    "head_norm": ([99], [99], [("vector", 33)], {"eps": 1e-6, "n_heads": 3}),
    "bias": ([33], [33], [("vector", 33)], {}),
    "linear": ([256], [9], [("q4_k", 9, 256)], {}),
    "linear_many": ([64], [9, 33], [("q8_0", 9, 64), ("q4_0", 33, 64)], {}),
    "linear_add": ([64, 33], [33], [("q8_0", 33, 64)], {}),
    "glu_linear": ([64], [33], [("q8_0", 33, 64), ("q4_1", 33, 64)], {"activation": "gelu"}),
    "rope": ([H * D, 6], [H * D], [], {**HEADS, "interleaved": True}),
    "rope_append": ([KV * D, KV * D, 30], [], [], {**KVS, "interleaved": False}),
    "kv_append": ([KV * D, KV * D], [], [], KVS),
    "attention": (
        [H * D],
        [H * D],
        [("vector", H)],
        {**HEADS, **KVS, "scale": 0.2, "window": 3, "alibi": 8.0},
    ),
    "latent_append": ([KV * D], [], [], KVS),
    "index_append": ([D], [], [], {"head_dim": D}),
    "index_select": ([3 * D, 3], [5], [], {"n_heads": 3, "head_dim": D}),
    "sparse_attention": ([H * D, 5], [H * D], [], {**HEADS, **KVS, "scale": 0.2}),
    "block_mean": ([33], [33], [], {"block_size": 4}),
    "choose_blocks": (
        [2 * D],
        [2 * 3],
        [],
        {"n_heads": 2, "head_dim": D, "block_size": 2, "n_chosen": 3, "n_local": 1},
    ),
    "block_attention": (
        [H * D, 2 * 3],
        [H * D],
        [],
        {**HEADS, **KVS, "scale": 0.2, "block_size": 2, "n_choices": 2},
    ),
    "conv": ([33], [33], [("vector", 33, 4)], {"taps": 4, "dilation": 3, "silu": True}),
    "pool_groups": ([34, 34], [17], [("vector", 4, 34)], {"every": 4, "n_parts": 2}),
    "group_append": ([D], [], [], {"head_dim": D, "every": 2}),
    "group_attention": ([H * D], [H * D], [("vector", H)], {**HEADS, **GROUPED}),
    "sparse_group_attention": ([H * D, 2], [H * D], [("vector", H)], {**HEADS, **GROUPED}),
    "delta_rule": ([66, 66, 4 * 17, 4, 4], [4 * 17], [], {"n_heads": 4, "n_kv_heads": 2}),
    "selective_scan": ([33, 33, 19, 19], [33], [("vector", 33, 19)], {}),
    "ssm_scan": ([33, 3, 19, 19], [33], [("vector", 3)] * 3, {"n_groups": 1, "dt_max": 9.0}),
    "l2_norm": ([99], [99], [], {"eps": 1e-6, "n_heads": 3}),
    "log_decay": ([33], [33], [("vector", 3), ("vector", 33)], {"bound": -5.0}),
    "residual_attention": ([33, 99], [33], [("vector", 33)], {"eps": 1e-6, "n_earlier": 2}),
    "group_norm": ([99], [99], [("vector", 99)], {"eps": 1e-6, "n_groups": 3}),
    "swiglu": ([33, 33], [33], [], {}),
    "geglu": ([257, 257], [257], [], {}),
    "softcap": ([33], [33], [], {"cap": 2.0}),
    "add": ([33, 33], [33], [], {}),
    "silu": ([33], [33], [], {}),
    "gelu": ([33], [33], [], {}),
    "gelu_erf": ([33], [33], [], {}),
    "xielu": ([257], [257], [], {"positive": 0.8, "negative": 0.9, "beta": 0.5, "eps": -1e-6}),
    "multiply": ([33, 33], [33], [], {}),
    "sigmoid": ([33], [33], [], {}),
    "softplus": ([33], [33], [], {}),
    "relu_squared": ([33], [33], [], {}),
    "swiglu_oai": ([257, 257], [257], [], {"alpha": 1.7, "limit": 7.0}),
    "scale": ([33], [33], [], {"factor": 0.3}),
    "scale_rows": ([33, 3], [33], [], {}),
    "clamp": ([33], [33], [], {"low": -0.5, "high": 0.5}),
    "layer_norm": ([33], [33], [("vector", 33)], {"eps": 1e-6}),
    "route": ([16], [8], [("vector", 16)], {"n_used": 4, "n_groups": 4, "n_groups_used": 2}),
    "route_to": ([16, 4], [8], [], {"n_used": 4, "gating": "sqrtsoftplus"}),
    "expert_linear": ([U * 64, 2 * U], [U * 9], [("experts", 9, 64)], {"n_used": U}),
    "expert_bias": ([U * 33, 2 * U], [U * 33], [("vector", E, 33)], {"n_used": U}),
    "head_linear": ([E * 64], [E * 9], [("experts", 9, 64)], {"n_heads": E}),
    "take_head_columns": ([E * 33], [E * 5], [], {"n_heads": E, "offset": 28}),
    "join_heads": ([E * 33, E * 5], [E * 38], [], {"n_heads": E}),
    "expert_scale": ([U * 33, 2 * U], [U * 33], [("vector", E)], {"n_used": U}),
    "scale_shares": ([2 * U], [2 * U], [("vector", E)], {"n_used": U}),
    "expert_sum": ([U * 33, 2 * U], [33], [], {"n_used": U}),
    "merge_add": ([33, 99], [33], [], {}),
    "take_columns": ([100], [33], [], {"offset": 67}),
    "layer_columns": ([66], [33], [], {"width": 33}),
    "put_columns": ([33], [100], [], {"offset": 67}),
    "round_q8": ([96], [96], [], {}),
    "mix_streams": ([99, 12], [4 * 33], [], {"n_streams": 3}),
    "stream_products": ([99, 99], [3], [], {"n_streams": 3, "factor": 0.3}),
    "signed_root": ([33], [33], [], {"least": 1e-6}),
    "hyper_factors": (
        [15],
        [15],
        [("vector", 3), ("vector", 15)],
        {"n_streams": 3, "n_iterations": 5, "eps": 1e-6},
    ),
    "hyper_mix": ([3 * 150, 150, 15], [3 * 150], [], {"n_streams": 3}),
    "add_to_streams": ([99, 33], [99], [], {"first": 1}),
    "match_rms": ([99, 33], [99], [], {"eps": 1e-5}),
    "keep_above": ([33], [33], [], {"factor": 1.6}),
}


def weight(f, kind, *shape):
    if kind == "vector":
        return f.array(normal(*shape))
    if kind == "experts":
        return [weight(f, "q8_0", *shape) for _ in range(E)]
    return cpp.PackedMatrix(f.array(blocks(kind, *shape)), kind, shape)


# The floats of recurrent memory of an op.
RECURRENT = {"conv": 3 * 3 * 33, "block_mean": 33, "delta_rule": 4 * 33 * 17} | {
    "ssm_scan": 33 * 19,
    "selective_scan": 33 * 19,
}


def state(f, kind, capacity, *, latent, indexed, recurrent):
    """A sequence whose pages of 16 positions are fenced, and end with the values, or the keys, or
    an index of one head."""
    one = normal(KV, 16, D)
    kept = {"float16": one.astype(np.float16), "q8_0": cpp.quantize(one, "q8_0")}.get(kind, one)
    part, name = kept.nbytes, {"float32": "f32", "float16": "f16"}.get(kind, kind)
    v_offset, page_bytes = (0, part) if latent else (part, 2 * part)
    keys, index = (0, 0, v_offset, name, KV, D, D), None
    if indexed:
        at = page_bytes - part // KV
        keys, index = None, (0, at, at, name, 1, D, D)
    made = cpp.SequenceState([(16, page_bytes)], [(keys, 0, recurrent, index)])
    made.set_recurrent(f.array(normal(recurrent)))
    for index in range(-(-capacity // 16)):
        page = np.concatenate([kept.reshape(-1).view(np.uint8)] * (1 if latent else 2))
        made.set_page(0, index, f.array(page))
    return made


def state_of_groups(f, kind, capacity):
    """A sequence of keys of one head, groups of 2 of these, and what groups of 17 are made of, in
    fenced pages of their own."""
    one, name = normal(1, 16, D), {"float32": "f32", "float16": "f16"}.get(kind, kind)
    kept = {"f16": one.astype(np.float16), "q8_0": cpp.quantize(one, "q8_0")}.get(name, one)
    kept = kept.reshape(-1).view(np.uint8)
    pending = normal(2, 2, 16, 17).reshape(-1).view(np.uint8)
    half = pending.nbytes // 2
    layer = (
        *((0, 0, 0, name, 1, D, D), 0, 0, None),
        *((1, 0, 0, name, 1, D, D), (2, 0, half, "f32", 2, 17, 17)),
    )
    made = cpp.SequenceState([(16, page.nbytes) for page in (kept, kept, pending)], [layer])
    for table, rows in enumerate((capacity, capacity // 2, capacity)):
        for index in range(-(-rows // 16)):
            made.set_page(table, index, f.array(pending if table == 2 else kept))
    return made


def run_executor(at_end):
    """Each op alone, over fenced buffers, weights and caches that are just large enough."""
    f = Fence(at_end)
    assert OPS.keys() | {"embed"} == cpp.graph_ops().keys()
    for kind, (inputs, outputs, weights, attributes) in OPS.items():
        for n in (1, 2, 5, 40):
            for kv in ("float32", "float16", "q8_0"):
                print(kind, n, kv, flush=True)
                ins = [f"in{i}" for i in range(len(inputs))]
                outs = [f"out{i}" for i in range(len(outputs))]
                widths = dict(zip(ins + outs, inputs + outputs, strict=True))
                slots = [f"w{i}" for i in range(len(weights))]
                buffers = [(name, width, True) for name, width in widths.items()]
                op = (kind, ins, outs, slots, attributes)
                executor = cpp.Executor(buffers, slots, [op], n)
                bound = executor.bind(
                    {s: weight(f, *w) for s, w in zip(slots, weights, strict=True)}
                )
                arrays = {name: f.array(normal(n, width)) for name, width in widths.items()}
                if "n_used" in attributes and kind != "route":
                    arrays[ins[-1]][:, :U] = np.arange(U) % E
                before = {name: array.copy() for name, array in arrays.items()}
                recurrent = RECURRENT.get(kind, 0)
                latent, indexed = kind == "latent_append", kind.startswith(("index_", "choose_"))
                if "group_a" in kind or kind == "pool_groups":
                    kept = state_of_groups(f, kv, n + 3)
                else:
                    kept = state(f, kv, n + 3, latent=latent, indexed=indexed, recurrent=recurrent)
                executor.run_layers([bound], arrays, [(n, 3, kept)])
                for name in outs:
                    assert not np.array_equal(arrays[name], before[name]), kind
                for name in ins:
                    assert np.array_equal(arrays[name], before[name]), kind
    for n in (1, 5):
        print("embed", n, flush=True)
        executor = cpp.Executor(
            [("ids", 1, True), ("y", 64, True)], ["w"], [("embed", ["ids"], "y", ["w"], {})], n
        )
        rows = f.array(cpp.quantize(normal(4, 64), "q4_0"))
        bound = executor.bind({"w": cpp.RawRows(rows, "q4_0", (4, 64))})
        ids = f.array(np.full(n, 3, np.int32))
        executor.run(bound, {"ids": ids, "y": f.empty(n, 64)}, n)


def main(isa, group, at_end):
    cpp.set_isa(isa)
    cpp.set_num_threads(3)
    by_name = {ops.__name__: ops for ops in GROUPS}
    if group == "executor":
        run_executor(at_end)
    else:
        run_ops(by_name[group], at_end)
    print("done")


def touch_beside(at_end):
    """What must end the process: one element beside a fenced array."""
    array = Fence(at_end).empty(3)
    address = array.ctypes.data + (array.nbytes if at_end else -4)
    print("touching", flush=True)
    return ctypes.c_float.from_address(address).value
