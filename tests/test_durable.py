"""What is on the disk before a file is said to be there."""

import os
from pathlib import Path

import numpy as np
import pytest
from sequence_states import heads_of, new_state

from airllm.backends.numpy_backend import NumpyBackend
from airllm.formats.gguf_writer import GGUFWriter, TensorInfo
from airllm.state import session
from airllm.tools.batch_answers import Answers
from airllm.tools.batch_jobs import Job
from airllm.util import durable


@pytest.fixture
def calls(monkeypatch):
    """What is made to last, in order: ("sync", a file's or folder's inode, its bytes), ("rename",
    the inode, None)."""
    made = []
    sync_well, replace_well = os.fsync, Path.replace

    def sync(descriptor):
        found = os.fstat(descriptor)
        made.append(("sync", found.st_ino, found.st_size))
        sync_well(descriptor)

    def replace(path, target):
        made.append(("rename", path.stat().st_ino, None))
        return replace_well(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    return made


def job(index):
    return Job(index, index + 1, None, f"prompt {index}", {}, {})


def test_a_folder_is_synced(calls, tmp_path):
    durable.sync_directory(tmp_path)
    assert [(kind, inode) for kind, inode, _ in calls] == [("sync", tmp_path.stat().st_ino)]


def test_each_answer_is_on_the_disk_before_the_next_one_begins(calls, tmp_path):
    path = tmp_path / "answers"
    jobs = [job(0), job(1)]
    with Answers.open(path, jobs, "run") as answers:
        for each in jobs:
            answers.append(each, {"text": "x"})
            assert calls[-1] == ("sync", path.stat().st_ino, path.stat().st_size)
    assert calls[0][:2] == ("sync", tmp_path.stat().st_ino)
    assert len(calls) == 3


def check_file_then_name_then_folder(calls, path):
    found = path.stat()
    assert calls[:2] == [("sync", found.st_ino, found.st_size), ("rename", found.st_ino, None)]
    assert calls[2][:2] == ("sync", path.parent.stat().st_ino)


def test_a_converted_model_has_its_name_when_it_is_on_the_disk(calls, tmp_path):
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, {}, [TensorInfo("t", "f32", (4,))]) as writer:
        writer.write("t", np.zeros(4, np.float32))
    check_file_then_name_then_folder(calls, path)


def test_a_session_has_its_name_when_it_is_on_the_disk(calls, tmp_path):
    path = tmp_path / "s"
    session.save(path, new_state(NumpyBackend(), [heads_of(1, 32)], 8), bytes(32))
    check_file_then_name_then_folder(calls, path)
