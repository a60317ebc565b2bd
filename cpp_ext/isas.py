"""The ISAs that the kernels are compiled for: flags as data, read by every build of the kernels.

An ISA is `isa/<name>.cpp` with its own compiler flags, compiled once for each of its parts: the
kernels that `kernels/parts/<part>.h` names. `dispatch.cpp` picks the last one of this list that was
compiled in and whose `needs` the CPU has (and the kernel enabled). The names in `needs` are fields
of `CpuFeatures` in `cpu_features.h`.
"""

from dataclasses import dataclass

PARTS = (
    *("rows", "attention", "plain", "packed", "activations"),
    *("quantized", "looked_up", "recurrent"),
)
EVERY_PART = (*PARTS, "tiles")
"""With those that few ISAs have."""


@dataclass(frozen=True)
class Isa:
    name: str
    """As `TENSOR_OPS_ISA` spells it, and the file name under `isa/`."""
    machines: tuple[str, ...]
    """Machine names (as `platform.machine()` gives them) it is compiled on; empty: everywhere."""
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    """Those that differ from the base's. One that is none of `PARTS` comes last, and replaces
    entries that others filled in."""
    base: str = ""
    """The ISA that has the other parts."""


_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *_AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd", "-mavx512vnni"),
    "-mprefer-vector-width=512",
)
_NEEDS_AVX512 = ("avx2", "fma", "f16c", "avx512", "avx512vnni")

# From the slowest to the fastest.
ISAS = (
    Isa("scalar", (), ("-DXSIMD_WITH_EMULATED=1",)),
    Isa("avx2", _X86, _AVX2, ("avx2", "fma", "f16c")),
    Isa(
        "avxvnni",
        _X86,
        (*_AVX2, "-mavxvnni"),
        ("avx2", "fma", "f16c", "avxvnni"),
        # Its dot products, and the packed layout, which for q8_0 follows them.
        ("packed", "quantized", "looked_up"),
        "avx2",
    ),
    Isa("avx512", _X86, _AVX512, _NEEDS_AVX512),
    Isa(
        "amx",
        _X86,
        (*_AVX512, "-mamx-tile", "-mamx-int8"),
        (*_NEEDS_AVX512, "amx_int8"),
        ("tiles",),
        "avx512",
    ),
    Isa("neon", _ARM, (), ("neon",)),
    Isa(
        "neon_dotprod",
        _ARM,
        ("-march=armv8.2-a+dotprod",),
        ("neon", "dotprod"),
        ("quantized", "looked_up"),
        "neon",
    ),
    Isa(
        "neon_i8mm",
        _ARM,
        ("-march=armv8.2-a+dotprod+i8mm",),
        ("neon", "dotprod", "i8mm"),
        ("quantized", "looked_up"),
        "neon",
    ),
)


def parts_of(isa: Isa) -> list[tuple[Isa, str]]:
    """Its parts, each with the ISA that has it."""
    base = next((other for other in ISAS if other.name == isa.base), isa)
    own = [(isa, part) for part in isa.parts if part not in PARTS]
    return [*((isa if part in isa.parts else base, part) for part in PARTS), *own]


def isas_for(machine: str, only: str | None = None) -> tuple[Isa, ...]:
    """The ISAs to compile for `machine`, or just those that `only` names (comma-separated).

    Raises ValueError for a name that does not exist or cannot be compiled for this machine.
    """
    possible = tuple(isa for isa in ISAS if not isa.machines or machine in isa.machines)
    if not only:
        return possible
    by_name = {isa.name: isa for isa in possible}
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in by_name:
            raise ValueError(
                f"TENSOR_OPS_ISA names {name!r}, which cannot be compiled for {machine}; "
                f"possible here: {', '.join(by_name)}"
            )
    return tuple(isa for isa in possible if isa.name in names)
