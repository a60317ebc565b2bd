"""The C++ tests under the sanitizers: no read or write out of bounds, no undefined arithmetic, no
two threads at the same memory.

Everything is compiled again with the sanitizer in it, which takes minutes.
"""

import dataclasses

import cpp_program
import pytest
import test_flash_attention_cuda
import test_flash_attention_hostile

pytestmark = pytest.mark.sanitizer

# Not the parts that make the compiler take minutes and a gigabyte for one object; a null pointer is
# seen without them.
ADDRESS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-address-use-after-scope",
    "-fno-sanitize=null,object-size,vptr",
    "-fno-sanitize-recover=all",
)
THREAD = ("-fsanitize=thread",)
# Of the wider instances: the narrowest has the same pointers, and the compiler takes three times as
# long for these two of the largest object.
NARROWEST_ONLY = "-fno-sanitize=alignment,pointer-overflow"


def instrumented(sanitizer, isas):
    """The compiler with the sanitizer, and some of this machine's ISAs as it compiles them."""
    # -O1 and symbols: reports that can be read, from objects that compile in reasonable time.
    flags = (*sanitizer, "-O1", "-g1", "-fno-omit-frame-pointer")
    toolchain = cpp_program.build.Toolchain.native(flags)
    chosen = tuple(
        isa
        if isa.name == "scalar"
        else dataclasses.replace(isa, flags=(*isa.flags, NARROWEST_ONLY))
        for isa in cpp_program.native_isas()
        if isa.name in isas
    )
    return toolchain, chosen


def program(name, sanitizer, isas, groups):
    """The program of some groups, instrumented."""
    toolchain, chosen = instrumented(sanitizer, isas)
    # Of code that a sanitizer has changed, the compiler gives warnings that are wrong.
    return cpp_program.built(name, toolchain, chosen, groups, cpp_program.FLAGS)


# Of threads and fork() the other sanitizer, or none, knows more.
ADDRESS_GROUPS = tuple(group for group in cpp_program.GROUPS if group not in ("team", "fork"))


# The vector kernels' loops and tails are one template: its narrowest and a wider instance.
ADDRESS_ISAS = {"scalar", "avx2", "neon_dotprod"}


@pytest.fixture(scope="module")
def address_program():
    return program("address", ADDRESS, ADDRESS_ISAS, ADDRESS_GROUPS)


@pytest.mark.parametrize("group", ADDRESS_GROUPS)
def test_nothing_is_read_or_written_out_of_bounds_or_undefined(address_program, group):
    cpp_program.run(address_program, group, UBSAN_OPTIONS="print_stacktrace=1")


def test_no_hostile_struct_of_the_attention_library_reads_out_of_bounds(address_program):
    """address_program: has compiled the kernels, which are linked here too."""
    toolchain, isas = instrumented(ADDRESS, ADDRESS_ISAS)
    made = cpp_program.folder("address")
    path = test_flash_attention_hostile.program("attention-address", toolchain, isas, made)
    assert min(test_flash_attention_hostile.run(path, 0, 100_000)) > 20_000


def test_no_kernel_for_gpus_reads_out_of_bounds(address_program):
    """On fibers, whose memory the sanitizer knows as well."""
    toolchain, isas = instrumented(ADDRESS, ADDRESS_ISAS)
    made = cpp_program.folder("address")
    program = test_flash_attention_cuda.generation_program(
        "attention-address", toolchain, isas, made
    )
    result = test_flash_attention_cuda.run(program, "20")
    assert result.returncode == 0, result.stdout + result.stderr[-8000:]
    assert "cuda:0, heads of 256: largest error" in result.stdout


THREAD_GROUPS = ("team", "executor", "experts", "layer", "stream")


@pytest.fixture(scope="module")
def thread_program():
    return program("thread", THREAD, {"scalar"}, THREAD_GROUPS)


@pytest.mark.parametrize("group", THREAD_GROUPS)
def test_no_two_threads_work_on_the_same_memory(thread_program, group):
    cpp_program.run(thread_program, group, TSAN_OPTIONS="halt_on_error=1")
