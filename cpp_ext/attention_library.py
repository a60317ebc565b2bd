"""How the attention library, `flash_attention/`, is compiled, from attention's kernels.

python cpp_ext/attention_library.py FOLDER      builds it there, with its link and header
python cpp_ext/attention_library.py --cmake     tells CMakeLists.txt how to compile it
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from compiling import CHECKOUT, Toolchain, Unit, compile_all, link

import build
from isas import Isa, isas_for
from targets import Target

SOURCES = (
    *("tensor", "arguments", "sequences", "divide", "rows", "append", "forward", "combine"),
    *("context", "calls", "standalone"),
)
PARTS = ("rows", "attention")
"""Of the kernels."""

NAME = "libflash_attn_standalone.so"
SONAME = f"{NAME}.1"
HEADER = build.ROOT / "flash_attention/flash_attn.h"
EXPORTS = build.ROOT / "flash_attention/exports.map"
LINK_FLAGS = (
    *("-shared", f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={EXPORTS}", "-Wl,-z,defs"),
    "-Wl,-z,nodelete",  # its threads outlive dlclose
)


def library_units(toolchain: Toolchain, isas: Sequence[Isa], folder: Path) -> list[Unit]:
    """Its objects. Those that the extension has, too, are compiled as there."""
    core = build.core_units(toolchain, isas, folder, PARTS)
    others = (folder / "dispatch.o", folder / "threads/all.o")
    wanted = [u for u in core if u.object.parent.name == "isa" or u.object in others]
    sources = {"flash_attention/all": SOURCES, "flash_attention/cuda/backend": ("none",)}
    return [*wanted, *build.units_of(sources, folder, toolchain.flags)]


def build_library(toolchain: Toolchain, isas: Sequence[Isa], folder: Path) -> Path:
    """Compile and link it in a folder; returns the library, beside which lies a link to it."""
    library = folder / SONAME
    objects = compiled(toolchain, isas, folder / "objects", build.EXTENSION_OBJECTS)
    link(toolchain, objects, library, LINK_FLAGS)
    (folder / NAME).unlink(missing_ok=True)
    (folder / NAME).symlink_to(SONAME)
    shutil.copy(HEADER, folder)
    return library


def build_for_package(library: Path, target: Target | None = None) -> None:
    """Compile and link `library`, for this machine or the target, after the extension, of which
    most objects are."""
    toolchain = target.toolchain() if target else Toolchain.native()
    made = build.target_objects(target) if target else build.EXTENSION_OBJECTS
    isas = isas_for(toolchain.machine, os.environ.get("TENSOR_OPS_ISA"))
    objects = compiled(toolchain, isas, made / "attention_library", made)
    flags = LINK_FLAGS if sys.platform == "linux" else build.shared_library_flags(target)
    link(toolchain, objects, library, (*flags, *(("-s",) if target else ())))


def compiled(toolchain: Toolchain, isas: Sequence[Isa], folder: Path, made: Path) -> list[Path]:
    """Its objects: in `folder`, or those of the extension in the folder `made`."""
    units = library_units(toolchain, isas, folder)
    return compile_all(toolchain, build.reused(toolchain, units, folder, made))


def native_library(folder: Path) -> Path:
    """For this machine, with the instruction sets that TENSOR_OPS_ISA names, or all."""
    toolchain = Toolchain.native()
    isas = isas_for(toolchain.machine, os.environ.get("TENSOR_OPS_ISA"))
    return build_library(toolchain, isas, folder)


def cmake_objects() -> str:
    """For each object a line of CMake that calls fa_object(name source options...)."""
    toolchain = Toolchain.native()
    isas = isas_for(toolchain.machine, os.environ.get("TENSOR_OPS_ISA"))
    folder = CHECKOUT / "build"
    lines = []
    for unit in library_units(toolchain, isas, folder):
        name = "_".join(unit.object.relative_to(folder).with_suffix("").parts)
        *first, last = map(str, unit.sources)
        headers = [flag for library in unit.headers for flag in library.flags]
        own = {build.INCLUDE: f"-I{build.ROOT}"}  # CMake runs the compiler somewhere else
        options = [own.get(flag, flag) for flag in (*unit.flags, *headers)]
        # Without SHELL, CMake would drop the second "-include".
        options += [f"SHELL:-include '{source}'" for source in first]
        words = (f"[==[{word}]==]" for word in (name, last, *options))
        lines.append(f"fa_object({' '.join(words)})")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--cmake"]:
        print(cmake_objects())
    elif len(sys.argv) == 2:
        print(native_library(Path(sys.argv[1]).absolute()))
    else:
        sys.exit(__doc__)
