"""The files that weights are kept in: whose they are, and what they do on a disk that is full."""

import errno
import hashlib
import os
import stat
import tracemalloc

import numpy as np
import pytest
from other_user import give_away

from airllm.cluster import spill as spill_module
from airllm.cluster.spill import CacheFile, SpillFile, file_bytes, room_bytes, spill_folder

PLANE = 8192


def plane(value, nbytes=PLANE):
    return np.full(nbytes, value, np.uint8)


def holds(spill, place, data):
    return os.pread(spill.descriptor, data.nbytes, place) == data.tobytes()


@pytest.fixture
def full_disk(monkeypatch):
    """Fails writes of the weights' file as a disk does, of which `full_disk(n)` leaves n bytes
    beyond what the file has."""
    write_well = os.pwrite
    limit = {}

    def write(descriptor, data, offset):
        if limit and offset + len(data) > limit["end"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_well(descriptor, data, offset)

    def free(descriptor):
        return max(limit["end"] - os.fstat(descriptor).st_size, 0)

    def leave(path, n):
        limit["end"] = (path.stat().st_size if path.exists() else 0) + n
        monkeypatch.setattr(spill_module, "_free_bytes", free)
        monkeypatch.setattr(os, "pwrite", write)

    return leave


def filled(folder, values):
    """The weights of an earlier run."""
    spill = CacheFile(folder)
    for value in values:
        spill.store(plane(value))
    spill.close()
    return folder / "weights"


def test_the_spill_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(spill_module.tempfile, "tempdir", None)
    assert spill_folder() == tmp_path
    spill = SpillFile()
    spill.store(plane(1))
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(spill.descriptor).st_nlink == 0
    spill.close()


def test_the_cache_is_for_this_user_alone(tmp_path):
    before = os.umask(0)
    try:
        CacheFile(tmp_path / "new").close()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"new": 0o700, "weights": 0o600, "weights.index": 0o600}


@pytest.mark.parametrize("name", ["weights", "weights.index"])
def test_a_link_in_the_cache_is_not_followed(tmp_path, name):
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    (tmp_path / "precious").write_bytes(b"mine")
    (folder / name).symlink_to(tmp_path / "precious")
    with pytest.raises(PermissionError, match="is a link, which is not followed"):
        CacheFile(folder)
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_cache_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by other users"):
        CacheFile(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_users_cache_is_refused(tmp_path, monkeypatch):
    give_away(monkeypatch, tmp_path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        CacheFile(tmp_path)


def test_a_cache_that_is_refused_keeps_no_descriptor(tmp_path):
    (tmp_path / "weights.index").symlink_to("elsewhere")
    probe = os.dup(0)
    os.close(probe)
    for _ in range(3):
        with pytest.raises(PermissionError):
            CacheFile(tmp_path)
    again = os.dup(0)  # the lowest number that is free
    os.close(again)
    assert again == probe


def test_planes_begin_at_whole_pages(tmp_path):
    spill = CacheFile(tmp_path)
    assert [spill.store(plane(i, 5000)) for i in range(3)] == [0, 8192, 16384]
    spill.close()


def test_a_place_that_is_no_whole_page_is_not_taken_from_the_index(tmp_path):
    data = plane(1, 4096)
    spill = CacheFile(tmp_path)
    spill.store(np.concatenate([plane(0, 100), data, plane(0, 4096)]))
    spill.close()
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "weights.index").write_text(f"{digest} 100 4096\n")
    spill = CacheFile(tmp_path)
    place = spill.store(data)
    assert place % 4096 == 0
    assert holds(spill, place, data)
    spill.close()


def test_an_index_that_is_one_long_line_takes_no_memory(tmp_path):
    CacheFile(tmp_path).close()
    os.truncate(tmp_path / "weights.index", 10_000_000)
    tracemalloc.start()
    spill = CacheFile(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert holds(spill, spill.store(plane(1)), plane(1))
    spill.close()


# ---- a disk that is full ----


def test_a_stale_cache_gives_its_place_where_the_disk_has_no_other(tmp_path, full_disk):
    path = filled(tmp_path, range(4))
    full_disk(path, PLANE)
    spill = CacheFile(tmp_path, 5 * PLANE)
    planes = [plane(10 + i) for i in range(5)]
    places = [spill.store(data) for data in planes]
    assert all(holds(spill, place, data) for place, data in zip(places, planes, strict=True))
    spill.close()
    assert path.stat().st_size == 5 * PLANE


def test_planes_of_this_run_are_never_overwritten(tmp_path, full_disk):
    path = filled(tmp_path, range(4))
    full_disk(path, 0)
    spill = CacheFile(tmp_path, 4 * PLANE)
    planes = [plane(value) for value in (1, 20, 3, 21)]  # 1 and 3 are there
    places = [spill.store(data) for data in planes]
    assert spill.reused_bytes == 2 * PLANE
    assert all(holds(spill, place, data) for place, data in zip(places, planes, strict=True))
    spill.close()


def test_a_larger_plane_takes_the_place_of_several(tmp_path, full_disk):
    path = filled(tmp_path, range(4))
    full_disk(path, 0)
    spill = CacheFile(tmp_path, 4 * PLANE)
    planes = [plane(20, PLANE), plane(21, 3 * PLANE)]
    places = [spill.store(data) for data in planes]
    assert places == [0, PLANE]
    assert all(holds(spill, place, data) for place, data in zip(places, planes, strict=True))
    spill.close()


def test_a_cache_is_kept_where_the_disk_has_room_beside_it(tmp_path, full_disk):
    path = filled(tmp_path, range(4))
    full_disk(path, 2 * PLANE)
    spill = CacheFile(tmp_path, 2 * PLANE)
    assert [spill.store(plane(20 + i)) for i in range(2)] == [4 * PLANE, 5 * PLANE]
    assert [spill.store(plane(i)) for i in range(4)] == [PLANE * i for i in range(4)]
    spill.close()


def test_a_disk_that_fills_up_meanwhile_is_emptied_of_the_cache_and_named(tmp_path, full_disk):
    path = filled(tmp_path, range(4))
    spill = CacheFile(tmp_path, PLANE)
    full_disk(path, 0)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        spill.store(plane(20))
    spill.close()
    assert path.stat().st_size == (tmp_path / "weights.index").stat().st_size == 0
    full_disk(path, PLANE)
    spill = CacheFile(tmp_path, PLANE)
    assert holds(spill, spill.store(plane(20)), plane(20))
    spill.close()


def test_the_room_is_what_is_free_and_what_the_cache_takes_of_the_disk(tmp_path, monkeypatch):
    usage = spill_module.shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(spill_module.shutil, "disk_usage", lambda folder: usage)
    assert room_bytes(tmp_path / "not" / "made") == 10**6
    path = filled(tmp_path, range(4))
    assert room_bytes(tmp_path) == 10**6 + 512 * path.stat().st_blocks
    os.truncate(path, 10**12)  # a hole takes nothing
    assert room_bytes(tmp_path) < 10**7


def test_a_link_is_no_room(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(bytes(10**6))
    (tmp_path / "weights").symlink_to(tmp_path / "large")
    usage = spill_module.shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(spill_module.shutil, "disk_usage", lambda folder: usage)
    assert room_bytes(tmp_path) == 0


def test_an_index_that_cannot_be_written_costs_a_write_and_nothing_else(tmp_path, monkeypatch):
    spill = CacheFile(tmp_path)

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        place = spill.store(plane(1))
    assert holds(spill, place, plane(1))
    spill.close()


def test_a_plane_takes_whole_pages_of_the_disk():
    assert [file_bytes(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
