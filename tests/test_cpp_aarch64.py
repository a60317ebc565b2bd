"""The C++ tests on aarch64: cross-compiled, and run by QEMU on CPUs with and without dotprod."""

import cpp_program
import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
NEW_CPU, OLD_CPU = (EMULATOR, "-cpu", "max"), (EMULATOR, "-cpu", "cortex-a57")

# QEMU has no affinity masks, quotas or threads of its own: those are the host's.
GROUPS = [group for group in cpp_program.GROUPS if group != "cpu_budget"]


pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def program():
    cpp_program.require(COMPILER, EMULATOR)
    return cpp_program.aarch64()


@pytest.mark.parametrize("group", GROUPS)
def test_every_test_passes_on_a_cpu_with_dotprod(program, group):
    isas = cpp_program.run(program, group, emulator=NEW_CPU)
    assert isas == ["scalar", "neon", "neon_dotprod"]


@pytest.mark.parametrize("group", ["dispatch", "matmul"])
def test_a_cpu_without_dotprod_takes_neon(program, group):
    assert cpp_program.run(program, group, emulator=OLD_CPU) == ["scalar", "neon"]
