"""The kernels for GPUs, run on the CPU: each thread of a block is a fiber (cuda/shim.h).

That shows their indices, bounds, waits and arithmetic. The same calls on a GPU, and its speed, are
tested where there is one (flash_attention/test_varlen_inference).
"""

import ctypes
import functools
import re
import subprocess

import cpp_program
import flash_library
import numpy as np
import pytest
from cpp_program import build
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flash_attention import Case, calls

import attention_library

FOLDER = attention_library.HEADER.parent
SHIM = cpp_program.ROOT / "tests/flash_attention/cuda_shim.cpp"


def shim(name, toolchain, isas, made, sources, output, flags):
    """A program or library of these sources and the library's objects, in which the backend for
    GPUs runs its kernels on the CPU."""
    folder = cpp_program.folder(name)
    own_flags = (*build.COMMON_FLAGS, *build.WARNINGS, "-Wno-unknown-pragmas", "-fPIC")
    units = [
        build.Unit(
            (path,), folder / f"{path.stem}.o", (*own_flags, build.INCLUDE, *toolchain.flags)
        )
        for path in (SHIM, *sources)
    ]
    with cpp_program.locked(folder):
        others = attention_library.library_units(toolchain, isas, folder)
        others = [unit for unit in others if unit.object.stem != "backend"]
        units += build.reused(toolchain, others, folder, made)
        build.link(toolchain, build.compile_all(toolchain, units), folder / output, flags)
    return folder / output


def generation_program(name, toolchain, isas, made):
    sources = [FOLDER / "test_varlen_inference.cpp"]
    return shim(name, toolchain, isas, made, sources, "test_varlen_inference", ())


@functools.cache
def library():
    toolchain, isas = build.Toolchain.native(), cpp_program.native_isas()
    made, flags = build.EXTENSION_OBJECTS, attention_library.LINK_FLAGS
    lib = ctypes.CDLL(str(shim("attention-shim", toolchain, isas, made, [], "shim.so", flags)))
    lib.fa_last_error.restype = lib.fa_build_info.restype = ctypes.c_char_p
    return lib


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    library()
    monkeypatch.setattr(flash_library, "library", library)


@st.composite
def gpu_calls(draw):
    """Calls that the kernels do, small enough for fibers."""
    call = draw(calls())
    kind, sizes = draw(
        st.sampled_from(
            [("f16", (8, 20, 64, 80, 96, 200, 256)), ("bf16", (16, 128)), ("e4m3", (16, 64))]
        )
    )
    call |= {"q_kind": kind, "kv_kind": kind, "new_kind": kind, "rotated_as": kind, "q_v": False}
    call |= {"d": draw(st.sampled_from(sizes)), "d_v": draw(st.sampled_from(sizes))}
    call |= {"batch": min(call["batch"], 2), "kv_heads": min(call["kv_heads"], 2)}
    call |= {"s_q": draw(st.sampled_from([0, 1, 2, 5, 33]))}
    call |= {"s_k": draw(st.sampled_from([0, 1, 15, 64, 100]))}
    call["rotary"] &= kind != "e4m3" and call["appends"]
    return call


def check_examples(count):
    @settings(max_examples=count)
    @given(gpu_calls())
    def check(call):
        case = Case(call)
        flash_library.forward(device="cuda:0", **case.fields)
        case.check()
        for untouched in case.unused():
            assert (untouched == 77).all()

    check()


def test_any_call_is_attention_in_float64():
    check_examples(150)


def refusal(**fields):
    with pytest.raises(flash_library.RefusedError) as refused:
        flash_library.forward(device="cuda:0", **fields)
    return refused.value.status, str(refused.value)


def tensors(kind, d=16, **others):
    x = flash_library.stored(np.ones((1, 3, 2, d)), kind)
    out = np.zeros((1, 3, 2, d), np.float32)
    return {"q": x, "k": x.copy(), "v": x.copy(), "out": out, **others}


def test_what_the_kernels_do_not_do_is_refused_by_name():
    assert refusal(**tensors("f32")) == (
        flash_library.UNSUPPORTED,
        "q.type is f32; on a GPU it is f16, bf16 or e4m3",
    )
    bf16 = flash_library.stored(np.ones((1, 3, 2, 16)), "bf16")
    assert "k.type is f16, and q.type bf16" in refusal(**tensors("f16", q=bf16))[1]
    assert "q_v is there" in refusal(**tensors("f16", q_v=tensors("f16")["q"]))[1]
    no_kernel = 4
    assert refusal(**tensors("e4m3", d=128)) == (
        no_kernel,
        "this build has no kernel for heads of 128 elements of type e4m3",
    )


def test_a_call_that_is_refused_has_appended_nothing():
    one, heads = np.ones((1, 1, 300, 8)), 300
    kind = "f16"
    cache = [flash_library.stored(np.zeros((1, 600, heads, 8)), kind) for _ in "kv"]
    new = flash_library.stored(one, kind)
    status, text = refusal(
        q=new, k=cache[0], v=cache[1], k_new=new, v_new=new.copy(), out=new.copy(),
        seqused_k=np.array([5], np.int32), num_splits=256,
    )  # fmt: skip
    assert status == flash_library.UNSUPPORTED
    assert "76800 heads times splits" in text
    assert not any(x.any() for x in cache)


def test_the_callers_thread_keeps_its_device():
    library().fa_shim_device(3)
    flash_library.forward(device="cuda:0", **tensors("f16"))
    refusal(**tensors("e4m3", d=128))
    assert library().fa_shim_device(0) == 3


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("cuda:1", "there are 1 of them"),
        ("cuda:x", "expected a number"),
        ("gpu", 'there are "cpu"'),
    ],
)
def test_a_device_that_there_is_not_is_named(device, text):
    with pytest.raises(flash_library.RefusedError, match=re.escape(text)):
        flash_library.context(device)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_sequences_of_any_length_are_generated_as_in_float64():
    isas, made = cpp_program.native_isas(), build.EXTENSION_OBJECTS
    program = generation_program("attention-shim", build.Toolchain.native(), isas, made)
    result = run(program, "40")
    # The shim has no kernel of f16 for heads of 128: they take that for 256.
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cuda:0, heads of 256: largest error" in result.stdout


def test_each_kernel_has_a_file_of_its_own():
    names = {path.stem for path in (FOLDER / "cuda/kernels").glob("*.cu")}
    assert names == {
        f"hdim{d}_{kind}" for d in (64, 96, 128, 192, 256) for kind in ("f16", "bf16", "e4m3")
    }
    for name in names:
        text = (FOLDER / f"cuda/kernels/{name}.cu").read_text(encoding="utf-8")
        d, kind = re.fullmatch(r"hdim(\d+)_(\w+)", name).groups()
        element = {"f16": "Half", "bf16": "Bfloat16", "e4m3": "E4m3"}[kind]
        assert f'{name}(forward_kernel_of<{d}, {element}>("{name}"))' in text


@pytest.mark.packaging
def test_a_kernel_compiles_without_spills():
    result = run(FOLDER / "compile_simple.sh", FOLDER / "cuda/kernels/hdim128_f16.cu")
    if result.returncode == 77:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^(\S+): [\d.]+ s, \d+ MB$", result.stdout, re.M) == ["sm_75", "sm_90a"]
    kernels = re.findall(r"forward_kernel.*: (\d+) registers, (\d+) bytes spilled", result.stdout)
    assert [spilled for _, spilled in kernels] == ["0", "0"]


def compile_with(nvcc):
    """Compiles a kernel with this program as NVCC."""
    environment = {"NVCC": str(nvcc), "PATH": "/usr/bin:/bin"}
    source = FOLDER / "cuda/kernels/hdim64_f16.cu"
    return run(FOLDER / "compile_simple.sh", source, env=environment)


@pytest.mark.packaging
def test_without_nvcc_a_kernel_is_not_compiled():
    result = compile_with("")
    assert (result.returncode, result.stdout.partition(" of")[0]) == (77, "no nvcc")


@pytest.mark.packaging
def test_an_nvcc_that_is_too_old_is_named_and_not_used(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    nvcc.chmod(0o755)
    result = compile_with(nvcc)
    assert result.returncode == 77
    assert f"{nvcc} is of CUDA 11; expected 12 or later" in result.stderr
