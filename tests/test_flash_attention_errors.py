"""airllm.flash_attention: what is refused, and that the error names it as the caller knows it."""

import ctypes
import sys

import numpy as np
import pytest
from extension import require_cpp
from test_flash_attention_python import cached, normal, plain, same

import airllm.flash_attention as fa
from airllm.flash_attention import arrays, library

pytest.importorskip("ml_dtypes")


@pytest.fixture(autouse=True)
def _library():
    require_cpp()


REFUSED = [
    (TypeError, r"^q is a list; expected a NumPy array", {"q": [1.0]}),
    (TypeError, r"^k is float64; expected one of float32, ", {"k": np.zeros(3)}),
    (TypeError, r"^v is float16; expected float32, th", {"v": normal(2, 20, 2, 16, dtype="f2")}),
    (TypeError, r"^num_splits is a str; expected an int", {"num_splits": "2"}),
    (ValueError, r"^q has the shape \(3, 16\); expected 4 dim", {"q": normal(3, 16)}),
    (ValueError, r"^v\.shape\[1\] is 19; expected 20, as k has", {"v": normal(2, 19, 2, 16)}),
    (ValueError, r"^qv\.shape\[2\] is 3; expected 4, as q has", {"qv": normal(2, 3, 3, 16)}),
    (ValueError, r"^window_size\[1\] is -2; expected -1 to", {"window_size": (0, -2)}),
    (ValueError, r"^window_size is 4; expected \(left, right\)", {"window_size": 4}),
    (ValueError, r"^num_splits is 257; expected 0 to 256", {"num_splits": 257}),
    (ValueError, r"^attention_chunk is 2147483648; expected a n", {"attention_chunk": 2**31}),
    (ValueError, r"^learnable_sink\.shape\[0\] is 2; expected 4", {"learnable_sink": normal(2)}),
    (ValueError, r"^q_descale is there, but q is not e4m3", {"q_descale": normal(2, 2)}),
    (ValueError, r"^threads is 0; expected 1 to 1024", {"threads": 0}),
    (TypeError, r"^threads is a list; expected an int", {"threads": [2]}),
    (TypeError, r"^threads is a float; expected an int", {"threads": 2.0}),
    (TypeError, r"^softcap is a str; expected a number", {"softcap": "2"}),
    (ValueError, r"^softcap is 1000.*; expected a number that", {"softcap": 10**400}),
    (TypeError, r"^softmax_scale is a ndarray; expected a n", {"softmax_scale": np.zeros(2)}),
    (TypeError, r"^pack_gqa is a ndarray; expected True or", {"pack_gqa": np.zeros(2)}),
    (TypeError, r"^causal is a ndarray; expected True or", {"causal": np.zeros(2)}),
    (TypeError, r"^dropout_p is a ndarray; expected a number", {"dropout_p": np.zeros(2)}),
    (NotImplementedError, r"^dropout_p is 0.1; expected 0", {"dropout_p": 0.1}),
    (NotImplementedError, r"^alibi_slopes is there; expected None", {"alibi_slopes": normal(4)}),
    (NotImplementedError, r"^the last size of v \(d_v\) is 577; exp", {"v": normal(2, 20, 2, 577)}),
]  # fmt: skip

TABLE = np.zeros((3, 2), int)
READ_ONLY = normal(2, 20, 2, 16)
READ_ONLY.flags.writeable = False
REFUSED_CACHES = [
    (ValueError, r"^k_cache\.shape\[3\] is 8; expected 16, the ", {"k_cache": normal(2, 20, 2, 8)}),
    (ValueError, r"^k\.shape\[2\] is 1; expected 2, the .* of k_cache", {"k": normal(2, 2, 1, 16)}),
    (ValueError, r"^cache_seqlens\[1\] is 19: no room for 2 new keys", {"cache_seqlens": [0, 19]}),
    (ValueError, r"^cache_seqlens has the shape \(1,\); expected \(2\)", {"cache_seqlens": [1]}),
    (TypeError, r"^cache_seqlens is float64; expected int32", {"cache_seqlens": [1.0, 2.0]}),
    (ValueError, r"^cache_seqlens has rows of different le", {"cache_seqlens": [[1], [1, 2]]}),
    (TypeError, r"^cache_seqlens is object; expected int32", {"cache_seqlens": [None, 2]}),
    (ValueError, r"^cache_seqlens has 4294967296; expected numbers", {"cache_seqlens": [0, 2**32]}),
    (ValueError, r"^cache_seqlens is None; expected the keys in use", {"cache_seqlens": None}),
    (ValueError, r"^cache_batch_idx\[1\] is 2; k_cache has 2 rows", {"cache_batch_idx": [0, 2]}),
    (ValueError, r"^cache_leftpad\[0\] is 12; expected 0 to 9, ", {"cache_leftpad": [12, 0]}),
    (ValueError, r"^rotary_seqlens is there, but no rotary_cos", {"rotary_seqlens": [1, 2]}),
    (ValueError, r"^k_cache is read-only; expected memory for what is", {"k_cache": READ_ONLY}),
    (ValueError, r"^page_table has the shape \(3, 2\); expected \(2, any\)", {"page_table": TABLE}),
    (ValueError, r"^cache_batch_idx has 3; page_table has 3 rows",
     {"page_table": TABLE, "cache_batch_idx": [0, 3]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "arguments"), REFUSED, ids=[text for _, text, _ in REFUSED]
)
def test_an_argument_that_is_wrong_is_named_as_the_caller_knows_it(kind, text, arguments):
    with pytest.raises(kind, match=text):
        fa.flash_attn_func(**plain() | arguments)


@pytest.mark.parametrize(
    ("kind", "text", "arguments"), REFUSED_CACHES, ids=[text for _, text, _ in REFUSED_CACHES]
)
def test_an_argument_of_a_cache_that_is_wrong_is_named_as_the_caller_knows_it(
    kind, text, arguments
):
    with pytest.raises(kind, match=text):
        fa.flash_attn_with_kvcache(**cached() | arguments)


def test_lists_of_starts_have_one_number_more_than_sequences():
    x = normal(6, 2, 16)
    with pytest.raises(ValueError, match=r"^cu_seqlens_k has the shape \(2,\); expected \(3\)"):
        fa.flash_attn_varlen_func(x, x, x, [0, 3, 6], [0, 6], 3, 6)
    with pytest.raises(ValueError, match=r"^max_seqlen_q is 2; sequence 0 has 3 rows"):
        fa.flash_attn_varlen_func(x, x, x, [0, 3, 6], [0, 3, 6], 2, 3)
    pages = normal(2, 4, 2, 16)
    with pytest.raises(ValueError, match=r"^cu_seqlens_k\[1\] is 9; expected"):
        fa.flash_attn_varlen_func(
            x, pages, pages, [0, 3, 6], [0, 4, 13], 3, 9, block_table=[[0], [1]]
        )


@pytest.mark.parametrize("kind", ["int64", "nonsense", object()], ids=["int64", "nonsense", "none"])
def test_a_type_of_results_that_there_is_not_is_refused_by_name(kind):
    partial, lse = normal(2, 1, 1, 1, 8), np.zeros((2, 1, 1, 1), np.float32)
    with pytest.raises(TypeError, match=r"^out_dtype is .*; expected"):
        fa.flash_attn_combine(partial, lse, out_dtype=kind)


class Lanes:
    """Says to have DLPack, and gives a capsule of something else, or a tensor of pairs."""

    def __init__(self, x, lanes):
        self.capsule = x.__dlpack__() if lanes else "no capsule"
        if lanes:
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            arrays._DLTensor.from_address(pointer(self.capsule, b"dltensor")).lanes = lanes

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **options):
        return self.capsule


def test_an_array_whose_dlpack_is_none_or_of_pairs_is_refused_by_name():
    call = plain()
    with pytest.raises(TypeError, match=r"^k has elements of 2 numbers; expected one each"):
        fa.flash_attn_func(**call | {"k": Lanes(call["k"], 2)})
    with pytest.raises(
        TypeError, match=r"^k\.__dlpack__\(\) gives 'no capsule'; expected a DLPack"
    ):
        fa.flash_attn_func(**call | {"k": Lanes(call["k"], 0)})


def test_a_tensor_of_pytorch_that_is_negated_when_it_is_read_is_refused():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.tensor(x) for x in plain().values())
    lazy = torch.complex(k, k).conj().imag
    with pytest.raises(ValueError, match=r"^k is a lazy view; expected k\.resolve_neg\(\)"):
        fa.flash_attn_func(q, lazy, v)
    same(fa.flash_attn_func(q, lazy.resolve_neg(), v), fa.flash_attn_func(q, -k, v))


def test_results_of_pytorch_are_the_cpus_whatever_its_default_device():
    torch = pytest.importorskip("torch")
    call = {name: torch.tensor(x) for name, x in plain().items()}
    wanted = fa.flash_attn_func(**call)
    with torch.device("meta"):
        same(fa.flash_attn_func(**call), wanted)


@pytest.fixture
def library_named(monkeypatch):
    """Lets AIRLLM_ATTENTION_LIBRARY name a file for one test."""
    library.library.cache_clear()
    yield lambda path: monkeypatch.setenv("AIRLLM_ATTENTION_LIBRARY", str(path))
    library.library.cache_clear()


def test_a_relative_path_names_a_library_of_this_folder(library_named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.so").symlink_to(library.BUILT_IN)
    library_named("own.so")
    assert library.library().fa_version() // 1_000_000 == library.MAJOR_VERSION


def test_a_file_that_is_no_attention_library_is_refused_by_name(library_named, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    library_named(tmp_path / "text.so")
    with pytest.raises(ImportError, match=r"text\.so is no attention library"):
        library.library()
    library.library.cache_clear()
    library_named(sys.modules["_ctypes"].__file__)  # a library, but of other functions
    with pytest.raises(ImportError, match=r"_ctypes.* is no attention library"):
        library.library()


def test_a_library_that_is_missing_is_named_with_the_way_out(library_named, tmp_path):
    library_named(tmp_path / "none.so")
    with pytest.raises(ImportError, match=r"none\.so: build it with `python cpp_ext/attention_l"):
        library.library()


def test_numbers_in_another_byte_order_are_refused():
    x = np.ones((1, 2, 1, 8), np.float32)
    other = x.astype(x.dtype.newbyteorder())
    with pytest.raises(TypeError, match=r"q is [<>]f4; expected numbers in this machine's byte"):
        fa.flash_attn_func(other, x, x)
