"""airllm.flash_attention: flash-attn's functions, on arrays of every kind, where they lie."""

import ctypes
import inspect
import threading
import tracemalloc

import numpy as np
import pytest
from extension import require_cpp
from flash_library import attend, default_scale, values, visible
from hypothesis import given, settings
from test_flash_attention import Case, calls

import airllm.flash_attention as fa
from airllm.flash_attention import arrays, library

ml_dtypes = pytest.importorskip("ml_dtypes")

BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BF16, E4M3)


@pytest.fixture(autouse=True)
def _library():
    require_cpp()


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def plain(dtype=np.float32, s_q=3, s_k=20):
    return {
        "q": normal(2, s_q, 4, 16, dtype=dtype, seed=1),
        "k": normal(2, s_k, 2, 16, dtype=dtype, seed=2),
        "v": normal(2, s_k, 2, 16, dtype=dtype, seed=3),
    }


def cached(dtype=np.float32, **others):
    """A call that appends two keys to each of two caches."""
    call = {
        "q": normal(2, 2, 4, 16, dtype=dtype, seed=1),
        "k_cache": normal(2, 20, 2, 16, dtype=dtype, seed=2),
        "v_cache": normal(2, 20, 2, 16, dtype=dtype, seed=3),
        "k": normal(2, 2, 2, 16, dtype=dtype, seed=4),
        "v": normal(2, 2, 2, 16, dtype=dtype, seed=5),
        "cache_seqlens": np.array([9, 4], np.int32),
        "causal": True,
    }
    return call | others


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


# ---- the arguments of flash-attn -----------------------------------------------------------------

# Of flash-attn 3, with their defaults.
FORWARD = "softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None "
FORWARD += "window_size=(-1,-1) attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None "
FORWARD += "deterministic=False sm_margin=0 return_attn_probs=False"
SIGNATURES = {
    "flash_attn_func": f"q k v {FORWARD}",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k "
    f"seqused_q=None seqused_k=None {FORWARD}",
    "flash_attn_with_kvcache": "q k_cache v_cache k=None v=None qv=None rotary_cos=None "
    "rotary_sin=None cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None "
    "cu_seqlens_q=None cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None q_descale=None "
    "k_descale=None v_descale=None softmax_scale=None causal=False window_size=(-1,-1) "
    "attention_chunk=0 softcap=0.0 rotary_interleaved=True scheduler_metadata=None num_splits=0 "
    "pack_gqa=None sm_margin=0 return_softmax_lse=False",
    "flash_attn_combine": "out_partial lse_partial out=None out_dtype=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_have_the_names_the_order_and_the_defaults_of_flash_attn(name):
    parameters = inspect.signature(getattr(fa, name)).parameters.values()
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    words = (
        p.name if p.default is p.empty else f"{p.name}={p.default!r}".replace(" ", "")
        for p in by_place
    )
    assert " ".join(words) == SIGNATURES[name]


# ---- results -------------------------------------------------------------------------------------

FUNCTIONS = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")
# What a function has no argument for.
FIXED = {
    "flash_attn_func": {"varlen_q": False, "layout": "dense", "seqused_q": False, "leftpad": False,
                        "appends": False, "rotary": False, "seqused_k": False},
    "flash_attn_varlen_func": {"varlen_q": True, "layout": "varlen", "leftpad": False,
                               "appends": False, "rotary": False},
    "flash_attn_with_kvcache": {"seqused_q": False},
}  # fmt: skip
RENAMED = {
    "flash_attn_with_kvcache": {
        "k": "k_cache", "v": "v_cache", "k_new": "k", "v_new": "v", "seqused_k": "cache_seqlens",
        "kv_batch_idx": "cache_batch_idx", "leftpad_k": "cache_leftpad",
        "seqlens_rotary": "rotary_seqlens",
    },
}  # fmt: skip


def of_ml_dtypes(x):
    """An array of the tests as NumPy has it with ml_dtypes."""
    return x.view({"uint16": BF16, "uint8": E4M3}.get(x.dtype.name, x.dtype))


def call_python(name, case, **others):
    """Calls the function with the fields of a case, and gives the case its results."""
    c, f = case.call, dict(case.fields)
    for field in ("flags", "window_left", "window_right", "out", "lse", "batch"):
        f.pop(field, None)
    if name == "flash_attn_with_kvcache":
        f["rotary_interleaved"] = c["interleaved"]
        assert "cu_seqlens_k" not in f
    if c.get("page_rows") and "page_table" in f:  # the table has rows of other sequences too
        f["kv_batch_idx"] = np.arange(len(f["page_table"]))[::-1]
        f["page_table"] = f["page_table"][::-1]
    arguments = {"causal": c["causal"], "window_size": (c["left"], c["right"])}
    more = {"q_v": "qv", "sinks": "learnable_sink"} | RENAMED.get(name, {})
    for field, value in f.items():
        is_float = isinstance(value, np.ndarray) and value.dtype.kind in "fu"
        arguments[more.get(field, field)] = of_ml_dtypes(value) if is_float else value
    wanted = "return_softmax_lse" if name == "flash_attn_with_kvcache" else "return_attn_probs"
    out, lse = getattr(fa, name)(**arguments, **{wanted: True}, **others, threads=2)
    assert out.shape == case.out.shape
    assert lse.dtype == np.float32
    case.out = case.fields["out"] = out.view(case.out.dtype)
    case.lse = lse


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_call_of_a_function_is_attention_in_float64(name):
    @settings(max_examples=40)
    @given(calls())
    def check(call):
        call |= FIXED[name]
        if call["layout"] == "varlen" and name == "flash_attn_with_kvcache":
            call["layout"] = "dense"
        call["out_kind"] = "bf16" if call["q_kind"] == "e4m3" else call["q_kind"]
        case = Case(call)
        call_python(name, case)
        case.check()
        if call["varlen_q"]:
            for unused in case.unused():
                assert (unused == 0).all()

    check()


def test_a_page_table_has_the_rows_that_cache_batch_idx_says():
    call = cached(k=None, v=None)
    for name in ("k_cache", "v_cache"):
        call[name] = normal(8, 4, 2, 16, seed=7)
    table = np.arange(8).reshape(4, 2)
    wanted = fa.flash_attn_with_kvcache(**call | {"cache_seqlens": 7, "page_table": table[[2, 0]]})
    chosen = {"cache_seqlens": 7, "page_table": table, "cache_batch_idx": [2, 0]}
    same(fa.flash_attn_with_kvcache(**call | chosen), wanted)


def test_a_block_table_of_flash_attn_2_has_its_lengths_by_cu_seqlens_k():
    call = plain()
    q, pages = (
        call["q"].reshape(6, 4, 16),
        [x.reshape(10, 4, 2, 16) for x in (call["k"], call["v"])],
    )
    starts = [0, 3, 6]
    table = np.arange(10).reshape(2, 5)
    out = fa.flash_attn_varlen_func(q, *pages, starts, [0, 20, 40], 3, 20, block_table=table)
    same(out, fa.flash_attn_func(**call).reshape(6, 4, 16))


def test_partial_results_are_combined():
    rng = np.random.default_rng(4)
    call = plain(s_q=2)
    halves = [
        fa.flash_attn_func(call["q"], call["k"][:, at], call["v"][:, at], return_attn_probs=True)
        for at in (np.s_[:7], np.s_[7:])
    ]
    out, lse = fa.flash_attn_combine(
        np.stack([out for out, _ in halves]), np.stack([lse for _, lse in halves]).swapaxes(2, 3)
    )
    wanted, wanted_lse = fa.flash_attn_func(**call, return_attn_probs=True)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lse.swapaxes(1, 2), wanted_lse, rtol=0, atol=1e-4)
    given = normal(2, 1, 1, 1, 8, seed=int(rng.integers(9)))
    half, _ = fa.flash_attn_combine(given, np.zeros((2, 1, 1, 1), np.float32), out_dtype=BF16)
    assert half.dtype == BF16
    np.testing.assert_allclose(half.astype(np.float32), given.mean(0), rtol=2**-8, atol=1e-6)


def test_threads_of_python_may_call_at_the_same_time():
    call = plain(s_q=30, s_k=400)
    wanted, wrong = fa.flash_attn_func(**call, threads=1), []

    def work(seed):
        for n in range(30):
            got = fa.flash_attn_func(**call, num_splits=1 + (n + seed) % 2, threads=1 + n % 2)
            if np.abs(got - wanted).max() > 1e-5:
                wrong.append((seed, n))

    started = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not wrong
    assert type(library.library()) is ctypes.CDLL  # which releases the GIL; PyDLL would not


# ---- arrays of every kind ------------------------------------------------------------------------


class Other:
    """An array that has DLPack and nothing else."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_of_numpy_have_the_type_of_q_or_bfloat16(dtype):
    out, lse = fa.flash_attn_func(**plain(dtype), return_attn_probs=True)
    assert isinstance(out, np.ndarray)
    assert (out.dtype, lse.dtype) == (BF16 if dtype == E4M3 else dtype, np.float32)
    q, k, v = (x.astype(np.float64) for x in plain(dtype).values())
    for b in range(2):
        seen = visible(3, 20, False, -1, -1, 0)
        wanted, wanted_lse = attend(q[b], k[b], v[b], default_scale(16), seen)
        step = {2: 2.0**-11}.get(dtype.itemsize, 2.0**-8) if dtype != BF16 else 2.0**-8
        np.testing.assert_allclose(out[b].astype(np.float64), wanted, rtol=step, atol=1e-5)
        np.testing.assert_allclose(lse[b], wanted_lse, rtol=0, atol=1e-4)


def test_arrays_with_dlpack_are_read_where_they_lie():
    call = plain()
    wanted = fa.flash_attn_func(**call)
    out = fa.flash_attn_func(**{name: Other(x) for name, x in call.items()})
    assert isinstance(out, np.ndarray)
    same(out, wanted)
    x = call["k"][:, ::2, 1:]
    array = arrays.array_of(Other(x), "k")
    assert (array.address, array.shape) == (x.ctypes.data, x.shape)
    assert array.strides == tuple(stride // 4 for stride in x.strides)


def test_lengths_may_be_lists_and_arrays_with_dlpack():
    wanted = fa.flash_attn_with_kvcache(**cached())
    for lengths in ([9, 4], np.array([9, 4]), Other(np.array([9, 4], np.int32))):
        same(fa.flash_attn_with_kvcache(**cached(cache_seqlens=lengths)), wanted)
    same(
        fa.flash_attn_with_kvcache(**cached(cache_seqlens=9)),
        fa.flash_attn_with_kvcache(**cached(cache_seqlens=[9, 9])),
    )


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_tensors_of_pytorch_give_the_bits_of_numpy(kind):
    torch = pytest.importorskip("torch")
    dtype = next(dtype for dtype in DTYPES if dtype.name == kind)

    def tensor(x):
        return torch.tensor(np.asarray(x, np.float32)).to(getattr(torch, kind))

    call = plain(dtype)
    out, lse = fa.flash_attn_func(**{n: tensor(x) for n, x in call.items()}, return_attn_probs=True)
    wanted, wanted_lse = fa.flash_attn_func(**call, return_attn_probs=True)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == (torch.bfloat16 if dtype == E4M3 else getattr(torch, kind))
    same(out.float(), wanted)
    same(lse, wanted_lse)
    numpy_cache = cached(dtype)
    torch_cache = {n: tensor(x) if n in ("q", "k", "v", "k_cache", "v_cache") else x
                   for n, x in cached(dtype).items()}  # fmt: skip
    torch_cache["cache_seqlens"] = torch.tensor([9, 4])
    same(
        fa.flash_attn_with_kvcache(**torch_cache).float(), fa.flash_attn_with_kvcache(**numpy_cache)
    )
    same(torch_cache["k_cache"].float(), numpy_cache["k_cache"])


def test_a_gradient_is_refused_and_not_lost():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.tensor(x) for x in plain().values())
    q.requires_grad_()
    with pytest.raises(NotImplementedError, match=r"^q requires a gradient.*torch\.no_grad"):
        fa.flash_attn_func(q, k, v)
    with torch.no_grad():
        same(fa.flash_attn_func(q, k, v), fa.flash_attn_func(**plain()))
    with pytest.raises(ValueError, match="k is on meta; expected memory of the CPU"):
        fa.flash_attn_func(q.detach(), k.to("meta"), v)


# ---- no copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_new_keys_appear_in_the_callers_own_memory(dtype):
    whole = np.full((2, 2, 20, 5, 16), 5, dtype)  # the caches have two of its five heads
    call = cached(dtype)
    for i, name in enumerate(("k_cache", "v_cache")):
        whole[i, :, :, 1:3] = call[name]
        call[name] = whole[i, :, :, 1:3]
    before = whole.copy()
    fa.flash_attn_with_kvcache(**call)
    for b, n in enumerate((9, 4)):
        before[:, b, n : n + 2, 1:3] = call["k"][b], call["v"][b]
    same(whole, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_caches_may_take_turns_in_memory(dtype):
    whole = np.full((2, 20, 3, 2, 16), 5, dtype)  # the caches are two of its three parts
    call, wanted = cached(dtype), cached(dtype)
    for i, name in enumerate(("k_cache", "v_cache")):
        whole[:, :, i] = call[name]
        call[name] = whole[:, :, i]
    same(fa.flash_attn_with_kvcache(**call), fa.flash_attn_with_kvcache(**wanted))
    same(whole[:, :, 0], wanted["k_cache"])
    same(whole[:, :, 1], wanted["v_cache"])
    same(whole[:, :, 2], np.full((2, 20, 2, 16), 5))
    call["v_cache"] = whole.reshape(2, 20, 6, 16)[:, :, 1:3]  # whose first head is the keys' last
    with pytest.raises(ValueError, match=r"^k_cache lies in the memory of v_cache"):
        fa.flash_attn_with_kvcache(**call)


def test_strided_views_are_read_without_a_copy():
    packed = normal(1, 3000, 3, 4, 64)
    q, k, v = (packed[:, :, i] for i in range(3))
    call = {"q": q[:, -1:], "k": k, "v": v}
    wanted = fa.flash_attn_func(**{name: x.copy() for name, x in call.items()}, threads=1)
    tracemalloc.start()
    out = fa.flash_attn_func(**call, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-6)
    assert peak < k.nbytes / 10


def test_values_that_the_tests_read_are_those_of_ml_dtypes():
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(values(codes), codes.view(E4M3).astype(np.float64))
