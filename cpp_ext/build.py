"""How the C++ sources are compiled: one description for the extension, its tests and benchmarks.

Each part of each ISA of `isas.py` is one object with its ISA's flags; everything else is compiled
for the machine's baseline, so that the binary starts on any CPU and dispatches from there.

    python cpp_ext/build.py [FOLDER]      what the objects of the last build took
"""

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from sysconfig import get_platform

sys.path.insert(0, str(Path(__file__).parent))  # for setup.py, which runs from the folder above
from compiling import CHECKOUT, Record, Toolchain, Unit, in_checkout, is_fresh, unused_variables
from compiling import COMPILER_BYTES as COMPILER_BYTES
from compiling import compile_all as compile_all
from compiling import link as link

from headers import BuildError as BuildError
from headers import (
    Headers,
    multiarch_headers,
    pybind11_headers,
    python_headers,
    xsimd_headers,
)
from isas import EVERY_PART, ISAS, Isa, isas_for, parts_of
from targets import TARGETS as TARGETS
from targets import Target

ROOT = Path(__file__).parent
XSIMD_CACHE = CHECKOUT / "build/xsimd"
EXTENSION_OBJECTS = CHECKOUT / f"build/objects-{get_platform()}-{sys.implementation.cache_tag}"

COMMON_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    "-DNDEBUG",  # xsimd asserts the alignment of every load, pybind11 the GIL at every reference
)
INCLUDE = f"-I{in_checkout(ROOT)}"
# Kernels throw nothing. They write FMA where they want it: a compiler that contracts a * b + c
# where it can gives a tail or a narrower tile other bits than the body. IEEE 754 stays.
KERNEL_FLAGS = ("-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-fno-math-errno")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion")
# GCC bug 105593: _mm512_undefined_ps() in its own headers; Clang has one of the two, and says so.
# GCC on ARM tells of every vector in a struct that its calls changed in version 10.
KERNEL_WARNINGS = (
    *WARNINGS,
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
    "-Wno-unused-command-line-argument",
    "-Wno-unknown-warning-option",
    "-Wno-unused-const-variable",  # a part of an ISA does not use each constant of the ISA
)

# Sources that are compiled as one object, by its name, in the folder of that name: reading headers
# takes most of the time, pybind11's alone 10 s.
CORE_SOURCES = {
    "dispatch": ("cpu_features", "dispatch"),
    "threads/all": ("cpu_budget", "crew", "team"),
    "ops/all": (
        *("attention", "blocks", "elementwise", "experts", "fused", "groups", "heads", "matrix"),
        *("ops", "q80", "recurrent", "residuals", "sampling", "slices", "sparse", "streams"),
    ),
    "graph/all": (
        *("graph", "weights", "memory", "executor", "plan", "state"),
        *("op_checks", "op_checks_attention", "op_checks_dense", "op_checks_experts"),
        *("op_checks_recurrent", "op_checks_slices", "op_checks_streams"),
        *("run", "run_attention", "run_products", "run_recurrent"),
    ),
    "stream/all": ("file", "requests", "uring", "schedule", "reader", "stream"),
}
# Without exceptions, see there.
STAY_SOURCES = {"threads/stay": ("stay",)}
BINDING_SOURCES = {
    "bindings/operations": (
        *("module", "arrays", "elementwise", "matrix", "formats", "attention", "runtime"),
        "sampling",
    ),
    "bindings/execution": ("executor", "graph", "sequence_state", "stream"),
}


def compiled_isas(isas: Sequence[Isa], kept: Sequence[str] = EVERY_PART) -> str:
    """The macro that tells dispatch.cpp which ISAs there are, what they need of the CPU, and the
    functions that fill in the kept parts of their tables."""
    lines = []
    for isa in isas:
        condition = " && ".join(f"cpu.{need}" for need in isa.needs) or "true"
        parts = ", ".join(f"{owner.name}_{part}" for owner, part in parts_of(isa) if part in kept)
        lines.append(f"TENSOR_OPS_ISA({isa.name}, {condition}, {parts})")
    return f"-DTENSOR_OPS_COMPILED_ISAS={' '.join(lines)}"


def core_units(
    toolchain: Toolchain, isas: Sequence[Isa], folder: Path, parts: Sequence[str] = EVERY_PART
) -> list[Unit]:
    """Everything below the bindings: the kernels of each ISA, or parts of them, and what runs
    them."""
    by_object = {
        unit.object: unit
        for isa in isas
        for owner, part in parts_of(isa)
        if part in parts
        for unit in [kernel_unit(toolchain, owner, part, folder)]
    }
    units = units_of(CORE_SOURCES, folder, toolchain.flags)
    dispatch = dataclasses.replace(units[0], flags=(*units[0].flags, compiled_isas(isas, parts)))
    stay = units_of(STAY_SOURCES, folder, (*toolchain.flags, "-fno-exceptions"))
    return [*by_object.values(), dispatch, *units[1:], *stay]


def kernel_unit(toolchain: Toolchain, isa: Isa, part: str, folder: Path) -> Unit:
    """The object of one part of an ISA."""
    name = f"{isa.name}_{part}"
    defines = (
        f'-DTENSOR_OPS_PART_HEADER="kernels/parts/{part}.h"',
        f"-DTENSOR_OPS_PART={name}",
        *own_xsimd(name),
    )
    flags = (*kernel_flags(toolchain, isa), *defines)
    xsimd = xsimd_headers(XSIMD_CACHE, not toolchain.zig)
    return Unit((ROOT / f"isa/{isa.name}.cpp",), folder / f"isa/{name}.o", flags, (xsimd,))


def kernel_flags(toolchain: Toolchain, isa: Isa) -> tuple[str, ...]:
    flags = (*COMMON_FLAGS, *KERNEL_FLAGS, *KERNEL_WARNINGS, INCLUDE)
    return (*flags, *toolchain.flags, *toolchain.machine_flags(isa.flags))


def own_xsimd(name: str) -> tuple[str, ...]:
    """A namespace of the object's own: xsimd has plain inline functions (NEON's), and the linker
    would keep one ISA's copy of them for all."""
    return (f"-Dxsimd=xsimd_{name}",)


def units_of(
    groups: Mapping[str, Iterable[str]],
    folder: Path,
    flags: Sequence[str],
    headers: tuple[Headers, ...] = (),
) -> list[Unit]:
    return [
        Unit(
            tuple(ROOT / Path(name).parent / f"{source}.cpp" for source in sources),
            folder / f"{name}.o",
            (*COMMON_FLAGS, *WARNINGS, INCLUDE, *flags),
            headers,
        )
        for name, sources in groups.items()
    ]


def reused(toolchain: Toolchain, units: Sequence[Unit], folder: Path, made: Path) -> list[Unit]:
    """The units of a build in `folder`. If the build in the folder `made` has an object that was
    made in the same way from the same files, the unit takes that object."""
    twins = [
        dataclasses.replace(unit, object=made / unit.object.relative_to(folder)) for unit in units
    ]
    return [
        twin if is_fresh(toolchain, twin) else unit for unit, twin in zip(units, twins, strict=True)
    ]


def build_program(
    toolchain: Toolchain,
    isas: Sequence[Isa],
    sources: Iterable[Path],
    folder: Path,
    output: Path,
    flags: Sequence[str] = (),
) -> None:
    """Compile `sources`, with flags of their own, and everything below the bindings; link them.

    Objects that the extension has, built in place with the same flags, are not made again.
    """
    own_flags = (*COMMON_FLAGS, *WARNINGS, INCLUDE, *toolchain.flags, *flags)
    own = [Unit((path,), folder / f"program/{path.stem}.o", own_flags) for path in sources]
    core = reused(toolchain, core_units(toolchain, isas, folder), folder, EXTENSION_OBJECTS)
    link(toolchain, compile_all(toolchain, [*core, *own]), output, ())


def extension_units(toolchain: Toolchain, folder: Path, version: str) -> list[Unit]:
    """All objects of tensor_ops_cpp for the running Python. TENSOR_OPS_ISA restricts the ISAs."""
    libraries = [python_headers(), pybind11_headers()]
    if toolchain.zig:
        libraries.append(multiarch_headers(toolchain.machine, folder / "include"))
    try:
        isas = isas_for(toolchain.machine, os.environ.get("TENSOR_OPS_ISA"))
    except ValueError as error:
        raise BuildError(str(error)) from None
    names = {
        "COMPILER": toolchain.version(),
        "FLAGS": " ".join(COMMON_FLAGS[:2] + KERNEL_FLAGS),
        "VERSION": version,
        "XSIMD": xsimd_headers(XSIMD_CACHE, not toolchain.zig).name.removeprefix("xsimd "),
    }
    defines = (f'-DTENSOR_OPS_{key}="{value}"' for key, value in names.items())
    bindings = units_of(BINDING_SOURCES, folder, (*toolchain.flags, *defines, "-Os"), (*libraries,))
    # The longest first, so that no core waits for one of them at the end.
    return [*bindings, *core_units(toolchain, isas, folder)]


def build_extension(output: Path, version: str, target: Target | None = None) -> None:
    """Compile and link tensor_ops_cpp for the running Python, on this machine or on the target.
    TENSOR_OPS_ISA restricts the ISAs."""
    if note := unused_variables():
        print(note, file=sys.stderr)
    toolchain = target.toolchain() if target else Toolchain.native()
    folder = target_objects(target) if target else EXTENSION_OBJECTS
    objects = compile_all(toolchain, extension_units(toolchain, folder, version))
    link(toolchain, objects, output, shared_library_flags(target))


def target_objects(target: Target) -> Path:
    return CHECKOUT / f"build/objects-{target.name}-{sys.implementation.cache_tag}"


def shared_library_flags(target: Target | None = None) -> tuple[str, ...]:
    if sys.platform == "darwin":
        return ("-bundle", "-undefined", "dynamic_lookup")
    flags = ("-shared", f"-Wl,--version-script={ROOT / 'exports.map'}")
    return (*flags, "-s") if target else flags  # Zig's libc++ has 30 MB for debuggers


def records(folder: Path) -> dict[str, Record]:
    """What each object of the extension took, by its name in the folder, the slowest first."""
    kernels = [f"isa/{isa.name}_{part}" for isa in ISAS for part in isa.parts]
    names = [f"{name}.o" for name in (*CORE_SOURCES, *STAY_SOURCES, *BINDING_SOURCES, *kernels)]
    found = {name: record for name in names if (record := Record.of(folder / name))}
    return dict(sorted(found.items(), key=lambda item: -item[1].cpu_seconds))


def again_after(folder: Path, header: str, made: Mapping[str, Record]) -> dict[str, Record]:
    """The objects that a change of that file, named from the checkout on, makes again."""
    path = (CHECKOUT / header).resolve()
    return {
        name: record
        for name, record in made.items()
        if any(((folder / name).parent / file).resolve() == path for file in record.files)
    }


def report(folder: Path) -> str:
    """What the objects in a folder took, and what each kernel's change would take."""
    made = records(folder)
    lines = [f"{'object':28} {'s of CPU':>8} {'MB':>5}"]
    for name, record in made.items():
        lines.append(f"{name:28} {record.cpu_seconds:8.1f} {record.peak_bytes / 1e6:5.0f}")
    total = sum(record.cpu_seconds for record in made.values())
    lines += [f"{'all':28} {total:8.1f}", "", f"{'after a change of':28} {'s of CPU':>8} objects"]
    for path in sorted((ROOT / "kernels").glob("*.h")):
        again = again_after(folder, in_checkout(path), made)
        taken = sum(record.cpu_seconds for record in again.values())
        lines.append(f"{path.name:28} {taken:8.1f} {len(again):7}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else EXTENSION_OBJECTS))
