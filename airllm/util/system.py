"""The machine's CPU name, cgroup limits (v1 and v2) and memory.

The values come from /proc and /sys. A value that a system does not report is None, not an error.
`root` stands for /, so that tests can describe another machine.

Sources: cgroups(7), proc(5), and the kernel's admin-guide/cgroup-v1 and cgroup-v2.
"""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")

# cgroup v1 has no word for "unlimited": it reports the largest page-aligned int64. No machine
# has an exbibyte of memory, so a value of that size or more means that there is no limit.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class CpuQuota:
    cpus: float  # CPUs' worth of time in each period: 1.5 means 150 ms of every 100 ms
    source: Path  # the file with the quota


@dataclass(frozen=True)
class MemoryLimit:
    limit: int  # bytes
    used: int  # bytes, without the file cache that the kernel drops before it refuses memory
    source: Path

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True)
class CgroupDirectory:
    version: int  # 1 or 2
    path: Path


def cpu_model(root: Path = ROOT) -> str:
    """The CPU's model name; on ARM the board's; otherwise the name of the architecture."""
    found = re.search(r"^model name\s*:\s*(\S.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    if found:
        return found[1].strip()
    board = _text(root / "proc/device-tree/model").strip("\0\n ")
    return board or platform.processor() or platform.machine()


def cpu_quota(root: Path = ROOT) -> CpuQuota | None:
    """The tightest CPU quota over this process, or None. A parent's quota holds for its children.

    v2: cpu.max is "QUOTA PERIOD" in microseconds, QUOTA "max" without a limit.
    v1: cpu.cfs_quota_us (-1 without a limit) and cpu.cfs_period_us.
    """
    quotas = []
    for directory in cgroup_directories("cpu", root):
        if directory.version == 2:
            source = directory.path / "cpu.max"
            words = _text(source).split()
        else:
            source = directory.path / "cpu.cfs_quota_us"
            words = (_text(source) + " " + _text(directory.path / "cpu.cfs_period_us")).split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
            quotas.append(CpuQuota(int(words[0]) / int(words[1]), source))
    return min(quotas, key=lambda quota: quota.cpus, default=None)


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """The cgroup memory limit that leaves this process the least, or None."""
    limits = []
    for directory in cgroup_directories("memory", root):
        if directory.version == 2:
            names = ("memory.max", "memory.current", "inactive_file")
        else:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        source = directory.path / names[0]
        limit = _integer(_text(source))
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _integer(_text(directory.path / names[1])) or 0
        cache = _field(_text(directory.path / "memory.stat"), names[2]) or 0
        limits.append(MemoryLimit(limit, max(0, used - cache), source))
    return min(limits, key=lambda limit: limit.free, default=None)


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be used without swapping and within the cgroup's limit; None if unknown."""
    kibibytes = _field(_text(root / "proc/meminfo"), "MemAvailable:")
    cgroup = memory_limit(root)
    known = [kibibytes * 1024] if kibibytes is not None else []
    known += [cgroup.free] if cgroup else []
    return min(known, default=None)


def total_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory in the machine, whatever the cgroup grants; None if unknown."""
    kibibytes = _field(_text(root / "proc/meminfo"), "MemTotal:")
    return kibibytes * 1024 if kibibytes is not None else None


def resident_bytes() -> int:
    """This process's resident memory; its peak on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """Have the C library return what was freed to the system. glibc keeps it: of a model of 98 MB,
    100 MB stayed resident after its end. Other libraries return memory by themselves, or never."""
    import ctypes  # here, because no command but the server needs it

    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cgroup_directories(controller: str, root: Path = ROOT) -> list[CgroupDirectory]:
    """This process's cgroup directories that hold `controller`'s files, own first, then parents.

    A controller lives in v1 or in v2, never in both; a hybrid system mounts both hierarchies,
    so the v1 line that names the controller decides.
    """
    memberships = dict(_memberships(root))  # controllers of the line -> cgroup path
    v1 = next((key for key in memberships if controller in key.split(",")), None)
    key = "" if v1 is None else v1  # the v2 line names no controllers
    if key not in memberships:
        return []
    for mount in _cgroup_mounts(root):
        if (controller in mount.v1_controllers) if v1 is not None else mount.version == 2:
            return [CgroupDirectory(mount.version, p) for p in mount.lineage(memberships[key])]
    return []


@dataclass(frozen=True)
class _Mount:
    version: int
    v1_controllers: frozenset[str]
    subtree: PurePosixPath  # the part of the hierarchy that is mounted
    mount_point: Path

    def lineage(self, cgroup: PurePosixPath) -> list[Path]:
        """Directories from `cgroup` up to the mount point.

        In a container the mount is often the container's own cgroup, while /proc/self/cgroup has
        the path on the host. The mount point is then the cgroup of this process.
        """
        if cgroup.is_relative_to(self.subtree) and ".." not in cgroup.parts:
            below = cgroup.relative_to(self.subtree)
        else:
            below = PurePosixPath()
        own = self.mount_point / below
        steps = len(below.parts)
        return [path for path in (own, *own.parents[:steps]) if path.is_dir()]


def _memberships(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """/proc/self/cgroup: "4:memory:/path" for v1, "0::/path" for v2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield fields[1], PurePosixPath(fields[2])


def _cgroup_mounts(root: Path) -> Iterator[_Mount]:
    """/proc/self/mountinfo: "31 23 0:28 SUBTREE MOUNT_POINT options ... - TYPE SOURCE OPTIONS"."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 5 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if after[0] == "cgroup2" else 1
        controllers = frozenset(after[2].split(",")) if version == 1 else frozenset[str]()
        subtree, mount_point = (_unescape(field) for field in before[3:5])
        yield _Mount(version, controllers, PurePosixPath(subtree), root / mount_point.lstrip("/"))


def _unescape(field: str) -> str:
    """proc(5): a space, tab, newline or backslash in a path is written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _integer(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None


def _field(table: str, name: str) -> int | None:
    """The number after `name` in a table of "name number [unit]" lines."""
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name:
            return _integer(words[1])
    return None
