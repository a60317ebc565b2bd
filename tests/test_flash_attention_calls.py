"""Calls of the attention library: what is refused, threads, splits, and its other entries."""

import ctypes
import re
import threading

import numpy as np
import pytest
from flash_library import (
    ARRAYS,
    CAUSAL,
    INVALID,
    NO_DEVICE,
    Q8_0,
    SHORT,
    TENSORS,
    UNSUPPORTED,
    CombineParams,
    Params,
    RefusedError,
    Tensor,
    attend,
    check,
    context,
    default_scale,
    forward,
    give_workspace,
    library,
    params_of,
    stored,
    tensor,
    values,
    visible,
)


def plain(s_q=3, s_k=20, heads=4, kv_heads=2, d=16, seed=0, **fields):
    """The fields of a small call in float32."""
    rng = np.random.default_rng(seed)
    made = {
        "q": rng.standard_normal((2, s_q, heads, d), np.float32),
        "k": rng.standard_normal((2, s_k, kv_heads, d), np.float32),
        "v": rng.standard_normal((2, s_k, kv_heads, d), np.float32),
        "out": np.zeros((2, s_q, heads, d), np.float32),
        "lse": np.zeros((2, heads, s_q), np.float32),
        "flags": CAUSAL,
    }
    return made | fields


def appending(**fields):
    """The fields of a call that has every tensor and array of a paged cache."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    return {
        "q": normal(2, 3, 4, 16),
        "k": normal(8, 16, 2, 16),
        "v": normal(8, 16, 2, 16),
        "k_new": normal(2, 2, 2, 16),
        "v_new": normal(2, 2, 2, 16),
        "q_v": normal(2, 3, 4, 16),
        "out": normal(2, 3, 4, 16),
        "lse": normal(2, 4, 3),
        "sinks": normal(4),
        "rotary_cos": normal(64, 4),
        "rotary_sin": normal(64, 4),
        "seqused_q": [3, 2],
        "seqused_k": [20, 7],
        "page_table": np.arange(8).reshape(2, 4),
        "leftpad_k": [3, 0],
        "seqlens_rotary": [20, 7],
    } | fields


def refusal(**fields):
    with pytest.raises(RefusedError) as error:
        forward(**fields)
    return error.value


# ---- what is refused -----------------------------------------------------------------------------


def resized(name, *shape, dtype=np.float32):
    return {name: np.zeros(shape, dtype)}


REFUSED = [
    (INVALID, r"^q\.rank is 3; expected 4 dimensions", plain(**resized("q", 3, 4, 16))),
    (INVALID, r"^k\.shape\[3\] is 8; expected 16, the d of q", plain(**resized("k", 2, 20, 2, 8))),
    (INVALID, r"^v\.shape\[1\] is 19; expected 20, as k has", plain(**resized("v", 2, 19, 2, 16))),
    (
        INVALID,
        r"^v\.type is 1; expected 0, the type of k",
        plain(**resized("v", 2, 20, 2, 16, dtype=np.float16)),
    ),
    (
        INVALID,
        r"^k\.shape\[2\] is 3 KV heads; expected a divisor of q's 4 heads",
        plain(**resized("k", 2, 20, 3, 16), v=np.zeros((2, 20, 3, 16), np.float32)),
    ),
    (
        INVALID,
        r"^k\.shape\[0\] is 5; expected 2, a row for each",
        plain(**resized("k", 5, 20, 2, 16), v=np.zeros((5, 20, 2, 16), np.float32)),
    ),
    (
        INVALID,
        r"^out\.type is 3; expected one of: f32, f16, bf16",
        plain(**resized("out", 2, 3, 4, 16, dtype=np.uint8)),
    ),
    (
        INVALID,
        r"^lse\.shape\[1\] is 3; expected 4, the heads of q",
        plain(**resized("lse", 2, 3, 3)),
    ),
    (INVALID, r"^sinks\.shape\[0\] is 2; expected 4", plain(**resized("sinks", 2))),
    (
        INVALID,
        r"^batch is 0; expected the number of sequences",
        plain(**resized("q", 6, 4, 16), cu_seqlens_q=[0, 3, 6], max_seqlen_q=3),
    ),
    (INVALID, r"^q_descale is there, but q is not e4m3", plain(**resized("q_descale", 2, 2))),
    (INVALID, r"^rotary_cos is there, but no k_new", plain(**resized("rotary_cos", 9, 4))),
    (INVALID, r"^seqused_k\[1\] is 21; expected 0 to 20", plain(seqused_k=[20, 21])),
    (INVALID, r"^seqused_q\[0\] is -1; expected 0 to 3", plain(seqused_q=[-1, 3])),
    (INVALID, r"^leftpad_k\[1\] is 8; expected 0 to 7", plain(seqused_k=[9, 7], leftpad_k=[9, 8])),
    (INVALID, r"^kv_batch_idx\[1\] is 2; k has 2 rows", plain(kv_batch_idx=[0, 2])),
    (
        INVALID,
        r"^page_table\[1\]\[0\] is 8; k has 8 pages",
        appending(page_table=np.array([[0, 1, 2, 3], [8, 1, 2, 3]])),
    ),
    (INVALID, r"^seqused_k is NULL; expected the keys in use", appending(seqused_k=None)),
    (
        INVALID,
        r"^seqused_k\[0\] is 63: no room for 2 new keys, as k has 64 rows",
        appending(seqused_k=[63, 7]),
    ),
    (
        INVALID,
        r"^seqlens_rotary\[0\] is 62, and 3 positions follow; rotary_cos has 64",
        appending(seqlens_rotary=[62, 7], flags=CAUSAL),
    ),
    (
        INVALID,
        r"^rotary_sin\.shape\[1\] is 3; expected 4",
        appending(**resized("rotary_sin", 64, 3)),
    ),
    (INVALID, r"^kv_batch_idx and page_table exclude", appending(kv_batch_idx=[0, 1])),
    (INVALID, r"^window_left is -2; expected -1 to", plain(window_left=-2)),
    (INVALID, r"^num_splits is 257; expected 0 to 256", plain(num_splits=257)),
    (INVALID, r"^softcap is -1; expected 0 or a positive", plain(softcap=-1.0)),
    (INVALID, r"^softmax_scale is nan; expected a finite", plain(softmax_scale=float("nan"))),
    (UNSUPPORTED, r"^params\.flags is 0x100; this library knows 0xf", plain(flags=0x100)),
    (UNSUPPORTED, r"^the last size of k \(d\) is 577; expected 1 to 576", plain(d=577)),
    (
        UNSUPPORTED,
        r"^q_v with e4m3",
        plain(
            **resized("k", 2, 20, 2, 16, dtype=np.uint8),
            v=np.zeros((2, 20, 2, 16), np.uint8),
            q_v=np.zeros((2, 3, 4, 16), np.float32),
        ),
    ),
    (
        UNSUPPORTED,
        r"^rotary_cos with e4m3",
        appending(**resized("q", 2, 3, 4, 16, dtype=np.uint8), q_v=None),
    ),
]


@pytest.mark.parametrize(
    ("status", "text", "fields"), REFUSED, ids=[text for _, text, _ in REFUSED]
)
def test_an_argument_that_is_wrong_is_named(status, text, fields):
    error = refusal(**fields)
    assert error.status == status
    assert re.search(text, str(error)), str(error)


STARTS = [
    ([1, 3, 6], r"cu_seqlens_q\[0\] is 1; expected 0"),
    ([0, 3, 2], r"cu_seqlens_q\[2\] is 2; expected 3 or more"),
    ([0, 3, 7], r"cu_seqlens_q\[2\] is 7; q has 6 rows"),
    ([0, 4, 6], r"max_seqlen_q is 3; sequence 0 has 4 rows by cu_seqlens_q"),
]


@pytest.mark.parametrize(("begin", "text"), STARTS)
def test_starts_that_are_wrong_are_named(begin, text):
    rows = {name: np.zeros((6, 4, 16), np.float32) for name in ("q", "out")}
    fields = plain(lse=None, batch=2, cu_seqlens_q=begin, max_seqlen_q=3, **rows)
    with pytest.raises(RefusedError, match=text):
        forward(**fields)


def test_memory_that_is_written_may_not_be_read():
    q = np.zeros((2, 3, 4, 16), np.float32)
    assert (
        str(refusal(**plain(q=q, out=q)))
        == "out lies in the memory of q; expected memory of its own"
    )
    out = Tensor.from_buffer_copy(tensor(q))
    out.stride[1] = 16
    assert "so that no two elements lie at the same place" in str(refusal(**plain(out=out)))


def test_lengths_and_starts_that_lie_where_something_is_written_are_refused():
    fields = plain(seqused_k=[20, 20])
    p = params_of(**fields)
    give_workspace(p)
    p.seqused_k = p.workspace
    with pytest.raises(RefusedError, match="seqused_k lies in the memory of workspace"):
        check(library().fa_fwd(context(), ctypes.byref(p), None))
    p.seqused_k = p.out.data
    with pytest.raises(RefusedError, match="out lies in the memory of seqused_k"):
        check(library().fa_fwd(context(), ctypes.byref(p), None))


def test_a_workspace_may_claim_all_memory_but_holds_nothing_else():
    p = params_of(**plain())
    give_workspace(p)
    p.workspace_bytes = 2**64 - 1
    check(library().fa_fwd(context(), ctypes.byref(p), None))
    p.workspace = p.out.data
    with pytest.raises(RefusedError, match="lies in the memory of workspace"):
        check(library().fa_fwd(context(), ctypes.byref(p), None))
    n = ctypes.c_uint64()  # which does not use it
    check(library().fa_fwd_workspace(context(), ctypes.byref(p), ctypes.byref(n)))


@pytest.mark.parametrize("stride", [0, 7, 2**60, 2**62])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_stride_of_a_dimension_of_one_does_not_count(kind, stride):
    wanted, fields = (plain(s_q=1, s_k=1, d=32, kv_heads=1) for _ in range(2))
    for name in ("k", "v"):
        wanted[name] = stored(wanted[name], kind)
        fields[name] = Tensor.from_buffer_copy(tensor(wanted[name]))
        fields[name].stride[1] = fields[name].stride[2] = stride
    forward(**wanted)
    forward(**fields)
    assert fields["out"].tobytes() == wanted["out"].tobytes()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_keys_may_be_the_same_row_at_every_position(kind):
    fields = plain(s_q=1, s_k=4, d=32)
    for name in ("k", "v"):
        whole = stored(fields[name], kind)
        fields[name] = Tensor.from_buffer_copy(tensor(whole))
        fields[name].stride[1], fields[name].kept = 0, whole
    forward(**fields)
    for i in range(2):
        first = np.repeat(values(fields["v"].kept)[i, 0], 2, 0)  # of each query head
        np.testing.assert_allclose(fields["out"][i, 0], first, rtol=0, atol=1e-5)


def test_a_tensor_without_data_is_absent_whatever_its_sizes():
    lse = Tensor.from_buffer_copy(tensor(np.zeros((2, 4, 3), np.float32)))
    lse.data = None
    lse.shape[:3] = [2**62, 2**62, 2**62]
    forward(**plain(lse=lse))


def test_a_workspace_that_is_missing_or_small_is_refused():
    p = params_of(**plain())
    for bytes_given, text in (
        (None, "workspace is NULL; expected"),
        (1, "workspace_bytes is 1; exp"),
    ):
        if bytes_given:
            give_workspace(p)
            p.workspace_bytes = bytes_given
        with pytest.raises(RefusedError, match=text):
            check(library().fa_fwd(context(), ctypes.byref(p), None))


def test_a_struct_of_another_version_is_told_apart():
    fields = params_of(**plain())
    give_workspace(fields)
    size = ctypes.sizeof(Params)
    longer = (ctypes.c_uint64 * (size // 8 + 2))()
    ctypes.memmove(longer, ctypes.byref(fields), size)
    struct_size = ctypes.cast(longer, ctypes.POINTER(ctypes.c_uint32))
    struct_size[0] = size + 16
    check(library().fa_fwd(context(), longer, None))  # the new fields are zero
    longer[size // 8 + 1] = 1
    with pytest.raises(RefusedError, match="header is newer than this library") as error:
        check(library().fa_fwd(context(), longer, None))
    assert error.value.status == UNSUPPORTED
    struct_size[0] = size - 8
    with pytest.raises(RefusedError, match=r"struct_size is \d+; expected sizeof"):
        check(library().fa_fwd(context(), longer, None))


@pytest.mark.parametrize(("device", "status", "text"), [
    ("cuda:0", NO_DEVICE, r'this build has no kernels for GPUs; it knows "cpu"'),
    ("gpu", NO_DEVICE, r'device is "gpu"; there are "cpu", "cpu:4", and in some builds "cuda:0"'),
    ("cuda:x", INVALID, r'device is "cuda:x"; expected a number, as in "cuda:0"'),
    ("cpu:0", INVALID, r'device is "cpu:0"; expected 1 to 1024 threads'),
    ("cpu:x", INVALID, r'device is "cpu:x"; expected 1 to 1024 threads'),
])  # fmt: skip
def test_a_device_that_there_is_not_is_named(device, status, text):
    with pytest.raises(RefusedError, match=text) as error:
        context(device)
    assert error.value.status == status


def test_null_pointers_are_refused():
    n, p = ctypes.c_uint64(), params_of(**plain())
    for call in (
        lambda: library().fa_fwd(None, ctypes.byref(p), None),
        lambda: library().fa_fwd(context(), None, None),
        lambda: library().fa_fwd(context(), ctypes.byref(p), ctypes.c_void_p(8)),
        lambda: library().fa_fwd_workspace(context(), ctypes.byref(p), None),
        lambda: library().fa_fwd_workspace(None, ctypes.byref(p), ctypes.byref(n)),
        lambda: library().fa_combine(context(), None, None),
        lambda: library().fa_context_create(None, None),
    ):
        with pytest.raises(RefusedError, match=r"is NULL|expected NULL"):
            check(call())
    library().fa_context_destroy(None)


def numbers(p):
    """Every number of a struct that is no pointer: (its name, the object and the field)."""
    for name in TENSORS:
        for field in ("type", "rank"):
            yield f"{name}.{field}", getattr(p, name), field
        for field in ("shape", "stride"):
            for i in range(5):
                yield f"{name}.{field}[{i}]", getattr(getattr(p, name), field), i
    for field in ("flags", *SHORT, "batch", "page_table_stride", "page_table_columns"):
        yield field, p, field


EXTREMES = [-1, 0, -(2**31), 2**31 - 1, -(2**63), 2**63 - 1, 2**40 + 1, 2**62]
POSSIBLE = {2**31 - 1, 2**40 + 1}  # strides of memory that there could be


FIELDS = "|".join((*TENSORS, *SHORT, *ARRAYS, "flags", "batch", "workspace"))
NAMED = re.compile(
    r"(params\.|the (last size of|page size,|number of heads in) )?\b"
    rf"({FIELDS}|page_table_\w+|workspace_bytes)\b"
)


def test_extreme_numbers_in_every_field_are_refused_by_name_or_harmless():
    """What is out of a field's range wraps around, as in C. Nothing crashes or hangs."""
    refused = 0
    for base in (
        plain(),
        appending(),
        plain(s_q=1, s_k=4),
        plain(s_q=1, s_k=1, heads=1, kv_heads=1),
    ):
        for extreme in EXTREMES:
            names = [name for name, _, _ in numbers(params_of(**base))]
            for at, name in enumerate(names):
                if "stride" in name and extreme in POSSIBLE:
                    continue
                p = params_of(**base)
                give_workspace(p)
                _, owner, field = list(numbers(p))[at]
                if isinstance(field, int):
                    owner[field] = extreme
                else:
                    setattr(owner, field, extreme)
                status = library().fa_fwd(context(), ctypes.byref(p), None)
                text = library().fa_last_error().decode()
                if status:
                    refused += 1
                    assert status in (INVALID, UNSUPPORTED), (name, extreme, text)
                    assert re.match(NAMED, text), (name, extreme, text)
    assert refused > 900


# ---- results -------------------------------------------------------------------------------------


def test_a_call_that_is_supported_says_so():
    reason = ctypes.create_string_buffer(b"before", 40)
    p = params_of(**plain())
    check(library().fa_supported(context(), ctypes.byref(p), reason, 40))
    assert reason.value == b""
    p.window_left = -2
    assert library().fa_supported(context(), ctypes.byref(p), reason, 16) == INVALID
    assert reason.value == b"window_left is "


@pytest.mark.parametrize("num_splits", [0, 4])
@pytest.mark.parametrize("s_q", [1, 40, 150])
def test_the_number_of_threads_changes_no_bit(num_splits, s_q):
    results = []
    for device in ("cpu:1", "cpu:2", "cpu:5"):
        fields = plain(s_q=s_q, s_k=2300, num_splits=num_splits)
        forward(device, **fields)
        results.append(fields["out"].tobytes() + fields["lse"].tobytes())
    assert len(set(results)) == 1


def test_contexts_work_in_several_threads_at_once():
    wanted = plain(s_q=70, s_k=600)
    forward(**wanted)
    wrong = []

    def call():
        for _ in range(5):
            fields = plain(s_q=70, s_k=600)
            forward(**fields)
            if fields["out"].tobytes() != wanted["out"].tobytes():
                wrong.append(fields)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def quantized(x):
    """x [..][d] as blocks of q8_0, and the values of the blocks."""
    blocks = x.reshape(-1, 32)
    d = (np.abs(blocks).max(1) / 127).astype(np.float16)
    q = np.round(blocks / d.astype(np.float32)[:, None]).astype(np.int8)
    data = np.concatenate([d[:, None].view(np.uint8), q.view(np.uint8)], 1)
    return np.ascontiguousarray(data), (q * d.astype(np.float64)[:, None]).reshape(x.shape)


@pytest.mark.parametrize("s_q", [1, 50])
def test_keys_of_q8_0(s_q):
    fields = plain(s_q=s_q, s_k=90, d=64)
    exact = {}
    for name in ("k", "v"):
        data, exact[name] = quantized(fields[name])
        fields[name] = tensor(fields[name], Q8_0)
        fields[name].data = data.ctypes.data
        fields[name].kept = data
    forward(**fields)
    for i in range(2):
        seen = visible(s_q, 90, True, -1, -1, 0)
        out, lse = attend(fields["q"][i].astype(float), exact["k"][i], exact["v"][i], 0.125, seen)
        np.testing.assert_allclose(fields["out"][i], out, rtol=0, atol=2e-5)
        np.testing.assert_allclose(fields["lse"][i], lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", [128, 150])
def test_many_heads_that_share_keys(group):
    """More heads than the kernels take at a time."""
    fields = plain(s_q=3, s_k=40, heads=2 * group)
    forward(**fields)
    for i in range(2):
        exact = [fields[name][i].astype(float) for name in ("q", "k", "v")]
        out, _ = attend(*exact, default_scale(16), visible(3, 40, True, -1, -1, 0))
        np.testing.assert_allclose(fields["out"][i], out, rtol=0, atol=2e-5)


def test_keys_that_are_appended_alone_are_those_that_forward_appends():
    whole, alone = appending(), appending()
    forward(**whole)
    p = params_of(**{name: alone[name] for name in alone if name not in ("q", "q_v", "out", "lse")})
    check(library().fa_kv_append(context(), ctypes.byref(p), None))
    for name in ("k", "v"):
        np.testing.assert_array_equal(alone[name], whole[name])
        assert (alone[name] != appending()[name]).any()


# ---- combine -------------------------------------------------------------------------------------


def combine(**tensors):
    p = CombineParams(struct_size=ctypes.sizeof(CombineParams))
    for name, array in tensors.items():
        setattr(p, name, tensor(array))
    check(library().fa_combine(context(), ctypes.byref(p), None))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_parts_that_are_combined_are_the_whole(kind):
    rng = np.random.default_rng(5)
    out_partial = rng.standard_normal((3, 2, 5, 4, 20), np.float32)
    lse_partial = (3 * rng.standard_normal((3, 2, 5, 4))).astype(np.float32)
    lse_partial[1, 0] = -np.inf
    lse_partial[:, 1, 2] = -np.inf  # nobody has seen anything
    out_partial[1, 0] = np.nan
    out = stored(np.ones((2, 5, 4, 20)), kind)
    lse = np.ones((2, 5, 4), np.float32)
    combine(out_partial=out_partial, lse_partial=lse_partial, out=out, lse=lse)
    wide = lse_partial.astype(float)
    total = np.logaddexp.reduce(wide, 0)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(wide), 0, np.exp(wide - total))
    expected = (weights[..., None] * np.nan_to_num(out_partial.astype(float))).sum(0)
    rounding = {"f32": 0, "f16": 2.0**-11, "bf16": 2.0**-8}[kind]
    assert (np.abs(values(out) - expected) <= 1e-6 + rounding * np.abs(expected)).all()
    np.testing.assert_allclose(lse, total, rtol=1e-6, atol=1e-6)


def test_a_part_that_is_no_number_makes_the_whole_none():
    lse_partial = np.full((2, 1, 1, 1), np.nan, np.float32)
    out, lse = np.zeros((1, 1, 1, 8), np.float32), np.zeros((1, 1, 1), np.float32)
    out_partial = np.ones((2, 1, 1, 1, 8), np.float32)
    combine(out_partial=out_partial, lse_partial=lse_partial, out=out, lse=lse)
    assert np.isnan(out).all()
    assert np.isnan(lse).all()


def test_parts_that_do_not_fit_together_are_named():
    shapes = {"out_partial": (3, 2, 5, 4, 8), "lse_partial": (3, 2, 5, 4), "out": (2, 5, 4, 8)}
    made = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(
        RefusedError, match=r"lse_partial\.shape\[0\] is 2; expected 3, as out_partial has"
    ):
        combine(**made | {"lse_partial": np.zeros((2, 2, 5, 4), np.float32)})
    with pytest.raises(RefusedError, match="lse lies in the memory of lse_partial"):
        combine(**made, lse=made["lse_partial"][0])


# ---- the flat entry ------------------------------------------------------------------------------


def standalone(fields, kind="f16"):
    """mha_fwd_standalone with the arguments of a call, in their order."""
    indices = {n: np.ascontiguousarray(fields[n], np.int32) for n in ARRAYS if n in fields}

    def at(name, arrays=fields):
        return ctypes.c_void_p(arrays[name].ctypes.data) if name in arrays else None

    def index(name):
        return at(name, indices)

    b, s_q, heads, d = fields["q"].shape
    paged = "page_table" in indices
    cache, f = fields["k"].shape, ctypes.c_float
    library().mha_fwd_standalone(
        *(at(name) for name in ("q", "k", "v", "k_new", "v_new", "q_v", "out")),
        *(None, None, None, index("seqused_q"), index("seqused_k"), 0, 0),
        *(index("page_table"), None, index("leftpad_k"), at("rotary_cos"), at("rotary_sin")),
        *(index("seqlens_rotary"), None, None, None),
        *(f(0), ctypes.c_bool(fields.get("flags", 0) & CAUSAL), -1, -1, 0, f(0)),
        *(ctypes.c_bool(False), None, 0, ctypes.c_bool(False), 0),
        *(ctypes.c_bool(kind == "bf16"), ctypes.c_bool(kind == "e4m3"), b, s_q, heads, d),
        *(0 if paged else cache[1], cache[2], fields["v"].shape[3], 0, 0),
        *((cache[1], cache[0], indices["page_table"].shape[1]) if paged else (0, 0, 0)),
        *((fields["k_new"].shape[1], 0) if "k_new" in fields else (0, 0)),
        *((8, 64) if "rotary_cos" in fields else (0, 0)),
        *(at("lse"), None, None),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["f16", "bf16", "e4m3"])
def test_the_flat_entry_does_what_the_struct_does(kind):
    wide = "bf16" if kind == "e4m3" else kind
    skipped = (
        "q_v",
        "sinks",
        *(("rotary_cos", "rotary_sin", "seqlens_rotary") if kind == "e4m3" else ()),
    )

    def made():
        fields = {name: x for name, x in appending(flags=CAUSAL).items() if name not in skipped}
        for name in fields.keys() & {*TENSORS} - {"lse"}:
            fields[name] = stored(
                fields[name], wide if name in ("out", "rotary_cos", "rotary_sin") else kind
            )
        return fields

    flat, whole = made(), made()
    standalone(flat, kind)
    check(library().fa_last_status())
    forward(**whole)
    for name in ("out", "lse", "k", "v"):
        assert flat[name].tobytes() == whole[name].tobytes()


def test_the_flat_entry_tells_what_is_wrong():
    fields = {name: stored(x, "f16") for name, x in plain().items() if name in ("q", "k", "out")}
    fields["v"] = np.zeros((2, 20, 2, 577), np.float16)
    standalone(fields)
    assert library().fa_last_status() == UNSUPPORTED
    assert library().fa_last_error() == b"the last size of v (d_v) is 577; expected 1 to 576"
