"""Builds tensor_ops_cpp and the attention library. All other settings are in pyproject.toml.

Environment: CXX (the compiler; flags may follow), TENSOR_OPS_ISA (the ISAs to build,
comma-separated), XSIMD_INCLUDE_DIR (the folder of xsimd's headers), AIRLLM_NO_EXTENSION=1 (no
extension: NumPy only), AIRLLM_TARGET (the machines that the wheel is for, as cpp_ext/targets.py
names them). CFLAGS, CXXFLAGS, CPPFLAGS and LDFLAGS are not used.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.absolute()
ATTENTION = "airllm.flash_attention.libflash_attn_standalone"
sys.path.insert(0, str(ROOT / "cpp_ext"))
import attention_library  # noqa: E402
import build as cpp_build  # noqa: E402
import targets  # noqa: E402


def version() -> str:
    text = (ROOT / "airllm" / "util" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.+)"', text)
    assert found, "airllm/util/version.py states no version"
    return found[1]


class BuildKernels(build_ext):
    """Compiles the sources of each ISA with its own flags, which plain build_ext cannot do."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).absolute()
        name = output.name if ext.name == ATTENTION else ext.name
        # Not build_temp: each editable install has a new one, and would compile everything again.
        try:
            if ext.name == ATTENTION:
                attention_library.build_for_package(output, target)
            else:
                cpp_build.build_extension(output, version(), target)
        except cpp_build.BuildError as error:
            sys.exit(f"\nerror: {name} was not built: {error}")
        except OSError as error:  # a read-only tree, a full disk
            place = f"{error.filename}: " if error.filename else ""
            sys.exit(
                f"\nerror: {name} was not built: {place}{error.strerror or error}. Build "
                "in a folder with room that you can write to, or, for NumPy alone, set "
                "AIRLLM_NO_EXTENSION=1"
            )

    def get_ext_filename(self, fullname: str) -> str:
        if ATTENTION.endswith(fullname):  # which Python does not import
            return fullname.replace(".", os.sep) + ".so.1"
        if target:
            return fullname.replace(".", os.sep) + target.extension_suffix
        name: str = super().get_ext_filename(fullname)
        return name


class BuildPython(build_py):
    """Empties the build folder first, so that a wheel has no files of an earlier version."""

    def run(self) -> None:
        left_over = Path(self.build_lib).absolute()
        if left_over.is_relative_to(ROOT / "build"):
            shutil.rmtree(left_over, ignore_errors=True)
        super().run()


try:
    target = targets.wanted_target()
except cpp_build.BuildError as error:
    sys.exit(f"\nerror: tensor_ops_cpp was not built: {error}")
wanted = os.environ.get("AIRLLM_NO_EXTENSION", "0") in ("", "0")
options = {}
if target:  # a folder of its own, so that builds for two targets may run at once
    options["build"] = {"build_lib": f"build/lib-{target.name}"}
    options["bdist_wheel"] = {"plat_name": target.wheel_platform}
# In this order: the library is made of objects of the extension.
extensions = [Extension(name, []) for name in ("tensor_ops_cpp", ATTENTION)] if wanted else []
setup(
    license="Apache-2.0",
    ext_modules=extensions,
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
    # pip and build ask by this command, and install it; other commands would fetch an egg.
    setup_requires=[targets.ZIGLANG] if target and "egg_info" in sys.argv else [],
    options=options,
)
