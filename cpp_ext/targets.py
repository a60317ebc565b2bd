"""Wheels that run on other machines than the one that builds them: what AIRLLM_TARGET may name.

Zig's Clang, which PyPI has as `ziglang`, brings each target's own libc, as headers and a list of
symbols by version, and puts libc++ into the extension. So nothing of the building machine's
libraries gets in, and no container with old ones is needed.
"""

import importlib.util
import os
import re
import sys
import sysconfig
from dataclasses import dataclass

from compiling import Toolchain

from headers import BuildError

ZIGLANG = "ziglang==0.17.1"
"""A build requirement where there is a target. This release's wheels were measured and tested."""


@dataclass(frozen=True)
class Target:
    name: str
    """As AIRLLM_TARGET and Zig's `-target` spell it: machine, system, libc and its version."""
    platform: str
    """The wheel's platform tag, without the machine."""

    @property
    def machine(self) -> str:
        return self.name.partition("-")[0]

    @property
    def wheel_platform(self) -> str:
        return f"{self.platform}_{self.machine}"

    @property
    def extension_suffix(self) -> str:
        """The end of an extension's file name: the running Python's, on the target."""
        python = "-".join(sysconfig.get_config_var("SOABI").split("-")[:2])  # cpython-311
        libc = re.split(r"[-.]", self.name)[2]
        return f".{python}-{self.machine}-linux-{libc}.so"

    def toolchain(self) -> Toolchain:
        """Zig's compiler for this target. Raises BuildError where it is not installed."""
        if importlib.util.find_spec("ziglang") is None:
            raise BuildError(
                f"AIRLLM_TARGET={self.name} needs Zig's compiler: pip install {ZIGLANG}, or "
                "python -m build --wheel, which fetches it"
            )
        compiler = (sys.executable, "-m", "ziglang", "c++", "-target", self.name)
        return Toolchain(compiler, self.machine, zig=True)


# glibc 2.28 is that of Debian 10, Ubuntu 18.10 and RHEL 8; musl 1.2 that of Alpine 3.13.
TARGETS = (
    Target("x86_64-linux-gnu.2.28", "manylinux_2_28"),
    Target("aarch64-linux-gnu.2.28", "manylinux_2_28"),
    Target("x86_64-linux-musl", "musllinux_1_2"),
    Target("aarch64-linux-musl", "musllinux_1_2"),
)


def wanted_target() -> Target | None:
    """The target that AIRLLM_TARGET names, None for this machine. Raises BuildError."""
    name = os.environ.get("AIRLLM_TARGET", "")
    if not name:
        return None
    for target in TARGETS:
        if target.name == name:
            break
    else:
        names = ", ".join(target.name for target in TARGETS)
        raise BuildError(f"AIRLLM_TARGET names {name!r}; expected one of {names}")
    if sys.platform != "linux" or sys.maxsize < 1 << 62:
        # Python's headers say how large its types are; they are the same on each 64-bit Linux.
        raise BuildError("AIRLLM_TARGET is for a 64-bit Python on Linux, whose headers are used")
    return target
