"""Cgroup limits, memory and the CPU's name, read from a made-up /proc and /sys under tmp_path."""

import json
import os
from pathlib import Path

import pytest
from extension import require_cpp
from subprocess_python import run_python

from airllm.util import system

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, files: dict[str, str], *, cgroup: str = "/app/job", subtree: str = "/") -> Path:
    """A machine with cgroup v2 alone; `files` lie under /sys/fs/cgroup."""
    return machine(
        root,
        {
            "proc/self/cgroup": f"0::{cgroup}\n",
            "proc/self/mountinfo": (
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                f"31 22 0:28 {subtree} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
            ),
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


def v1(root: Path, files: dict[str, str], *, cgroup: str = "/app/job", subtree: str = "/") -> Path:
    """A hybrid machine: cpu and memory in v1 hierarchies, v2 mounted beside them, empty."""
    mounts = "\n".join(
        f"{number} 31 0:{number} {place} /sys/fs/cgroup/{name} rw - {kind} cgroup rw{options}"
        for number, name, kind, options, place in [
            (32, "cpu,cpuacct", "cgroup", ",cpu,cpuacct", subtree),
            (35, "memory", "cgroup", ",memory", subtree),
            (41, "unified", "cgroup2", "", "/"),
        ]
    )
    return machine(
        root,
        {
            "proc/self/cgroup": f"4:memory:{cgroup}\n2:cpu,cpuacct:{cgroup}\n0::{cgroup}\n",
            "proc/self/mountinfo": mounts,
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


def test_v2_cpu_quota_is_quota_over_period_and_names_its_file(tmp_path: Path) -> None:
    root = v2(tmp_path, {"app/job/cpu.max": "150000 100000\n"})
    quota = system.cpu_quota(root)
    assert quota == system.CpuQuota(1.5, root / "sys/fs/cgroup/app/job/cpu.max")


def test_v2_max_means_no_quota(tmp_path: Path) -> None:
    assert system.cpu_quota(v2(tmp_path, {"app/job/cpu.max": "max 100000\n"})) is None


def test_a_tighter_quota_of_a_parent_holds_for_the_child(tmp_path: Path) -> None:
    files = {"app/job/cpu.max": "400000 100000", "app/cpu.max": "50000 100000"}
    quota = system.cpu_quota(v2(tmp_path, files))
    assert quota is not None
    assert quota.cpus == 0.5


def test_v1_cpu_quota_is_quota_over_period(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/app/job/cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct/app/job/cpu.cfs_period_us": "100000\n",
    }
    quota = system.cpu_quota(v1(tmp_path, files))
    assert quota is not None
    assert quota.cpus == 2.5


def test_v1_minus_one_means_no_quota(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/app/job/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/app/job/cpu.cfs_period_us": "100000\n",
    }
    assert system.cpu_quota(v1(tmp_path, files)) is None


@pytest.mark.parametrize("text", ["", "100000", "0x10 5", "100000 0", "\0\0", "1 2 3"])
def test_a_quota_file_that_makes_no_sense_is_no_quota(tmp_path: Path, text: str) -> None:
    assert system.cpu_quota(v2(tmp_path, {"app/job/cpu.max": text})) is None


def test_v2_memory_limit_leaves_out_the_cache_that_the_kernel_would_drop(tmp_path: Path) -> None:
    root = v2(
        tmp_path,
        {
            "app/job/memory.max": f"{512 * MIB}\n",
            "app/job/memory.current": f"{300 * MIB}\n",
            "app/job/memory.stat": f"anon 1\ninactive_file {100 * MIB}\nactive_file 7\n",
        },
    )
    limit = system.memory_limit(root)
    source = root / "sys/fs/cgroup/app/job/memory.max"
    assert limit == system.MemoryLimit(512 * MIB, 200 * MIB, source)
    assert limit.free == 312 * MIB


def test_v1_memory_limit_leaves_out_the_cache_that_the_kernel_would_drop(tmp_path: Path) -> None:
    root = v1(
        tmp_path,
        {
            "memory/app/job/memory.limit_in_bytes": f"{512 * MIB}\n",
            "memory/app/job/memory.usage_in_bytes": f"{300 * MIB}\n",
            "memory/app/job/memory.stat": f"cache 5\ntotal_inactive_file {100 * MIB}\n",
        },
    )
    limit = system.memory_limit(root)
    assert limit is not None
    assert (limit.limit, limit.used) == (512 * MIB, 200 * MIB)


def test_v2_max_means_no_memory_limit(tmp_path: Path) -> None:
    assert system.memory_limit(v2(tmp_path, {"app/job/memory.max": "max\n"})) is None


def test_v1_largest_number_means_no_memory_limit(tmp_path: Path) -> None:
    files = {"memory/app/job/memory.limit_in_bytes": NO_LIMIT_V1}
    assert system.memory_limit(v1(tmp_path, files)) is None


def test_the_memory_limit_that_leaves_the_least_wins(tmp_path: Path) -> None:
    """The parent's limit is the larger one, but its other children have used it up."""
    files = {
        "app/job/memory.max": f"{100 * MIB}",
        "app/job/memory.current": f"{10 * MIB}",
        "app/memory.max": f"{400 * MIB}",
        "app/memory.current": f"{380 * MIB}",
    }
    limit = system.memory_limit(v2(tmp_path, files))
    assert limit is not None
    assert limit.limit == 400 * MIB
    assert limit.free == 20 * MIB


def test_more_used_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    assert system.MemoryLimit(limit=5, used=9, source=tmp_path).free == 0


@pytest.mark.parametrize("build", [v1, v2])
def test_in_a_container_the_mount_point_is_the_own_cgroup(tmp_path: Path, build: object) -> None:
    """/proc/self/cgroup then speaks of the host's path, which is mounted as a subtree."""
    assert callable(build)
    files = {
        "memory.max": f"{64 * MIB}",
        "memory/memory.limit_in_bytes": f"{64 * MIB}",
    }
    root = build(tmp_path, files, cgroup="/docker/abc", subtree="/docker/abc")
    limit = system.memory_limit(root)
    assert limit is not None
    assert limit.limit == 64 * MIB


def test_a_cgroup_outside_the_mounted_subtree_falls_back_to_the_mount_point(tmp_path: Path) -> None:
    root = v2(tmp_path, {"memory.max": f"{64 * MIB}"}, cgroup="/../other", subtree="/")
    limit = system.memory_limit(root)
    assert limit is not None
    assert limit.source == root / "sys/fs/cgroup/memory.max"


def test_a_mount_point_with_a_space_is_found(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "31 22 0:28 / /odd\\040place rw - cgroup2 cgroup2 rw\n",
            "odd place/memory.max": f"{64 * MIB}",
        },
    )
    limit = system.memory_limit(root)
    assert limit is not None
    assert limit.limit == 64 * MIB


@pytest.mark.parametrize("line", ["", "nonsense", "31 22 - cgroup2", ":::", "31 - - - - - - -"])
def test_unreadable_mounts_and_memberships_are_no_limit(tmp_path: Path, line: str) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": line, "proc/self/mountinfo": line})
    assert system.cpu_quota(root) is None
    assert system.memory_limit(root) is None


def test_a_machine_without_proc_has_no_limits_and_unknown_memory(tmp_path: Path) -> None:
    assert system.cpu_quota(tmp_path) is None
    assert system.memory_limit(tmp_path) is None
    assert system.available_memory(tmp_path) is None
    assert system.total_memory(tmp_path) is None
    assert system.cpu_model(tmp_path)


def test_available_memory_is_the_machines_when_no_cgroup_limits_it(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/meminfo": "MemTotal: 2048 kB\nMemAvailable:  1024 kB\n"})
    assert system.available_memory(root) == MIB
    assert system.total_memory(root) == 2 * MIB


def test_available_memory_is_the_cgroups_when_that_is_less(tmp_path: Path) -> None:
    files = {"app/job/memory.max": f"{2 * MIB}", "app/job/memory.current": f"{MIB}"}
    root = machine(v2(tmp_path, files), {"proc/meminfo": "MemAvailable: 999999 kB\n"})
    assert system.available_memory(root) == MIB


def test_the_cpus_name_comes_from_cpuinfo(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/cpuinfo": "processor : 0\nmodel name\t: A CPU @ 3 GHz\n\n"})
    assert system.cpu_model(root) == "A CPU @ 3 GHz"


def test_an_arm_board_is_named_by_its_device_tree(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": "CPU part : 0xd08\n", "proc/device-tree/model": "A Board 4B\0"}
    assert system.cpu_model(machine(tmp_path, files)) == "A Board 4B"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_the_extension_reads_the_same_limits_on_this_machine() -> None:
    """It reads them itself, for those who use it without this package."""
    require_cpp()
    quota = system.cpu_quota()
    cpu = min(os.sched_getaffinity(0))
    for mask in (os.sched_getaffinity(0), {cpu}):
        done = run_python(
            f"import json, os; os.sched_setaffinity(0, {mask})\n"
            "import tensor_ops_cpp; print(json.dumps(tensor_ops_cpp.cpu_budget()))"
        )
        budget = json.loads(done.stdout)
        assert budget["affinity"] == len(mask)
        assert budget["cgroup_quota"] == pytest.approx(quota.cpus if quota else None)
