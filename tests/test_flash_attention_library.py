"""The attention library as a C programmer finds it: header, symbols, programs, and CMake."""

import ctypes
import os
import re
import subprocess
import sys

import cpp_program
import doc_pages
import flash_library
import pytest

import attention_library

ROOT = cpp_program.ROOT
PAGE = ROOT / "docs/pages/attention.md"
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror")


def run(*command, **options):
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def compiler(language):
    """That of the extension; for C the one of the same name."""
    [program, *_] = cpp_program.build.Toolchain.native().compiler
    c = {"g++": "gcc", "clang++": "clang"}.get(program, "cc")
    return [c, "-x", "c", "-std=c11"] if language == "c" else [program, "-x", "c++", "-std=c++17"]


def page_block(language):
    [block] = [b.text for b in doc_pages.blocks(PAGE) if b.language == language]
    return block


@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_compiles_without_a_warning(language, tmp_path):
    source = tmp_path / "program.c"
    source.write_text(
        '#include "flash_attn.h"\nint main(void) { return (int)fa_fwd_defaults().batch; }\n'
    )
    header = attention_library.HEADER.parent
    run(*compiler(language), *STRICT, "-fsyntax-only", f"-I{header}", source)


def test_the_structs_of_the_tests_are_those_of_the_header(tmp_path):
    """Sizes and the place of each field, as the C compiler has them."""
    fields = [name for name, *_ in flash_library.Params._fields_]
    lines = [f'printf("%zu\\n", offsetof(fa_fwd_params, {name}));' for name in fields]
    lines += [
        f'printf("%zu\\n", sizeof({name}));' for name in ("fa_fwd_params", "fa_combine_params")
    ]
    (tmp_path / "sizes.c").write_text(
        '#include <stdio.h>\n#include "flash_attn.h"\nint main(void) {' + "".join(lines) + "}\n"
    )
    program = tmp_path / "sizes"
    run(*compiler("c"), f"-I{flash_library.folder()}", tmp_path / "sizes.c", "-o", program)
    params, combine = flash_library.Params, flash_library.CombineParams
    expected = [getattr(params, name).offset for name in fields]
    assert list(map(int, run(program).split())) == [
        *expected, ctypes.sizeof(params), ctypes.sizeof(combine)]  # fmt: skip


def test_the_library_shows_the_interface_and_nothing_else():
    library = flash_library.folder() / attention_library.NAME
    symbols = run("nm", "-D", "--defined-only", "--format=posix", library).splitlines()
    header = attention_library.HEADER.read_text(encoding="utf-8")
    declared = set(re.findall(r"^FA_API [\w ]+?\*?\s*(\w+)\(", header, re.M))
    assert {line.split()[0] for line in symbols} == declared
    assert {"fa_fwd", "mha_fwd_standalone", "fa_last_status"} <= declared
    dynamic = run("objdump", "-p", library)
    assert re.search(r"SONAME\s+(\S+)", dynamic)[1] == attention_library.SONAME


def test_the_library_is_of_the_version_of_its_header():
    header = attention_library.HEADER.read_text(encoding="utf-8")
    version = int(re.search(r"FA_VERSION (\d+)u", header)[1])
    library = flash_library.library()
    assert library.fa_version() == version
    info = library.fa_build_info().decode()
    assert info.startswith(f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}; cpu: ")


def test_the_program_of_the_page_runs_and_prints_what_the_page_says(tmp_path):
    folder = flash_library.folder()
    (tmp_path / "attend.c").write_text(page_block("c"))
    program = tmp_path / "attend"
    link = (f"-I{folder}", f"-L{folder}", f"-Wl,-rpath,{folder}")
    run(*compiler("c"), *STRICT, tmp_path / "attend.c", *link, "-lflash_attn_standalone",
        "-o", program)  # fmt: skip
    assert run(program) == page_block("text")


# Counts what the process allocates while fa_fwd runs: the library's malloc is the program's.
ALLOCATIONS = r"""
#include <dlfcn.h>
#include <stdatomic.h>
extern void* __libc_malloc(size_t);
extern void* __libc_memalign(size_t, size_t);
static atomic_int allocations;
void* malloc(size_t n) { ++allocations; return __libc_malloc(n); }
void* aligned_alloc(size_t a, size_t n) { ++allocations; return __libc_memalign(a, n); }
"""


def test_a_call_allocates_nothing(tmp_path):
    if "gnu" not in run(*compiler("c")[:1], "-dumpmachine"):
        pytest.skip("counts by the names that glibc has")
    text = page_block("c").replace("enum {", ALLOCATIONS + "enum {", 1)
    text = text.replace("fa_fwd(cpu, &p, NULL)", "(allocations = 0, fa_fwd(cpu, &p, NULL)) ||\n"
                        "        (printf(\"%d allocations\\n\", allocations), 0)")  # fmt: skip
    text = text.replace("S_Q = 2, S_K = 3", "S_Q = 3, S_K = 3000")
    (tmp_path / "count.c").write_text(text)
    folder, program = flash_library.folder(), tmp_path / "count"
    link = (f"-I{folder}", f"-L{folder}", f"-Wl,-rpath,{folder}", "-lflash_attn_standalone")
    run(*compiler("c"), "-D_GNU_SOURCE", tmp_path / "count.c", *link, "-o", program)
    assert run(program).startswith("0 allocations\n")


def test_a_program_may_close_the_library_while_its_threads_wait():
    code = (
        "import ctypes, _ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); c = ctypes.c_void_p(); "
        "assert lib.fa_context_create(b'cpu:2', ctypes.byref(c)) == 0; "
        "lib.fa_context_destroy(c); _ctypes.dlclose(lib._handle); print('alive')"
    )
    library = flash_library.folder() / attention_library.NAME
    assert run(sys.executable, "-c", code, library) == "alive\n"


def test_the_sources_are_those_of_the_folder():
    folder = attention_library.HEADER.parent
    there = {path.stem for path in folder.glob("*.cpp")} - {"test_varlen_inference"}
    assert sorted(attention_library.SOURCES) == sorted(there)


CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES C)
add_executable(attend attend.c)
"""


@pytest.mark.packaging
def test_cmake_builds_installs_and_finds_the_library(tmp_path):
    cpp_program.require("cmake")
    made, installed = cpp_program.folder("attention-cmake"), tmp_path / "installed"
    scalar = os.environ | {"TENSOR_OPS_ISA": "scalar", "NVCC": "", "JOBS": "2", "LONGEST": "60"}
    script = attention_library.HEADER.parent / "build_minimal.sh"
    with cpp_program.locked(made):
        said = run(script, made, env=scalar)
        run("cmake", "--install", made, "--prefix", installed)
    assert "no nvcc of CUDA 12 or later: the CPU backend alone" in said
    assert "cpu, heads of 256: largest error" in said
    names = {path.name for path in installed.rglob("*") if path.is_file() or path.is_symlink()}
    library = attention_library.NAME
    assert {library, f"{library}.1", f"{library}.1.0.0", "flash_attn.h", "flash_attn.pc",
            "flash_attn-config.cmake", "flash_attn-config-version.cmake"} <= names  # fmt: skip
    consumer = tmp_path / "consumer"
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(CONSUMER + page_block("cmake"))
    (consumer / "attend.c").write_text(page_block("c"))
    run("cmake", "-S", consumer, "-B", consumer / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", consumer / "build")
    assert run(consumer / "build/attend") == page_block("text")
    assert "scalar, in use scalar" in info_of(installed, scalar)
    [pc] = installed.rglob("flash_attn.pc")
    assert "-lflash_attn_standalone" in pc.read_text(encoding="utf-8")


def info_of(installed, environment):
    """What the installed library says of its build."""
    [library] = installed.rglob(f"{attention_library.NAME}.1.0.0")
    code = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).fa_build_info; "
    code += "f.restype = ctypes.c_char_p; print(f().decode())"
    return run(sys.executable, "-c", code, library, env=environment)
