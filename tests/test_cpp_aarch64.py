"""The C++ tests on aarch64: cross-compiled, and run by QEMU on CPUs of three generations."""

import cpp_program
import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
NEW_CPU = (EMULATOR, "-cpu", "max")

# QEMU has no affinity masks, quotas or threads of its own: those are the host's.
GROUPS = [group for group in cpp_program.GROUPS if group != "cpu_budget"]
# These take a minute on all ISAs. The scalar kernels are the same source as on x86, and those of
# attention the same object with and without dot products.
LONG = {
    "attention": ["neon"],
    "attention_pages": ["neon"],
    "linear": ["neon", "neon_dotprod"],
    "quantized": ["neon", "neon_dotprod", "neon_i8mm"],
}
# i8mm's kernels differ in what the group "quantized" tests; as the best ISA, it runs the tests of
# operations and graphs, too.
SHORT = ["scalar", "neon", "neon_dotprod"]

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module")
def program():
    cpp_program.require(COMPILER, EMULATOR)
    return cpp_program.aarch64()


@pytest.mark.parametrize("group", GROUPS)
def test_every_test_passes_on_a_new_cpu(program, group):
    isas = LONG.get(group, SHORT)
    given = f"--isas={','.join(isas)}"
    assert cpp_program.run(program, given, group, emulator=NEW_CPU) == isas


@pytest.mark.parametrize(
    ("cpu", "group", "isas"),
    [
        ("cortex-a57", "dispatch", ["scalar", "neon"]),
        ("cortex-a57", "matmul", ["scalar", "neon"]),
        ("neoverse-n1", "dispatch", ["scalar", "neon", "neon_dotprod"]),
        ("max", "dispatch", ["scalar", "neon", "neon_dotprod", "neon_i8mm"]),
    ],
)
def test_a_cpu_takes_the_isas_that_it_has(program, cpu, group, isas):
    assert cpp_program.run(program, group, emulator=(EMULATOR, "-cpu", cpu)) == isas
