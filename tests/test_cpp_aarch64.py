"""The C++ tests on aarch64: cross-compiled, and run by QEMU on CPUs with and without dotprod."""

import cpp_program
import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
NEW_CPU, OLD_CPU = (EMULATOR, "-cpu", "max"), (EMULATOR, "-cpu", "cortex-a57")

# QEMU has no affinity masks, quotas or threads of its own: those are the host's.
GROUPS = [group for group in cpp_program.GROUPS if group != "cpu_budget"]
# These take a minute on all ISAs. The scalar kernels are the same source as on x86, and those of
# attention the same object with and without dot products.
LONG = {
    "attention": ["neon"],
    "attention_pages": ["neon"],
    "linear": ["neon", "neon_dotprod"],
    "quantized": ["neon", "neon_dotprod"],
}

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def program():
    cpp_program.require(COMPILER, EMULATOR)
    return cpp_program.aarch64()


@pytest.mark.parametrize("group", GROUPS)
def test_every_test_passes_on_a_cpu_with_dotprod(program, group):
    isas = LONG.get(group, ["scalar", "neon", "neon_dotprod"])
    given = f"--isas={','.join(isas)}"
    assert cpp_program.run(program, given, group, emulator=NEW_CPU) == isas


@pytest.mark.parametrize("group", ["dispatch", "matmul"])
def test_a_cpu_without_dotprod_takes_neon(program, group):
    assert cpp_program.run(program, group, emulator=OLD_CPU) == ["scalar", "neon"]
