"""The models that are found in a folder that its owner has filled by hand."""

import os
import time
from pathlib import Path

import pytest

from airllm.hub import directory, models_in_directory


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(root: Path) -> list[str]:
    return [model.name for model in models_in_directory(root)]


def test_files_and_folders_are_models_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.gguf", "A.gguf", "folder/config.json", "folder/model.safetensors")
    touch(tmp_path, "sub/c.gguf", "notes.txt", "config.json", ".hidden.gguf", "empty/x.json")
    assert names(tmp_path) == ["A", "b", "c", "folder"]
    paths = [model.path for model in models_in_directory(tmp_path)]
    assert paths[2:] == [tmp_path / "sub/c.gguf", tmp_path / "folder"]


def test_a_split_file_is_one_model_once_all_of_it_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "m-00001-of-00002.gguf")
    assert names(tmp_path) == []
    touch(tmp_path, "m-00002-of-00002.gguf")
    (model,) = models_in_directory(tmp_path)
    assert (model.name, model.path.name, model.n_bytes) == ("m", "m-00001-of-00002.gguf", 2)


def test_what_is_no_language_model_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "mmproj-F16.gguf", "model.imatrix.gguf", "model.gguf")
    assert names(tmp_path) == ["model"]


def test_equal_names_are_told_apart_the_same_way_each_time(tmp_path: Path) -> None:
    touch(tmp_path, "x/m.gguf", "y/m.gguf", "m.gguf", "m/config.json", "m/model.safetensors")
    assert names(tmp_path) == ["m", "m-2", "x/m", "y/m"]
    assert [model.path.name for model in models_in_directory(tmp_path)][:2] == ["m.gguf", "m"]
    assert names(tmp_path) == names(tmp_path)


def test_links_are_followed_and_those_that_lead_nowhere_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/real.gguf", "here/own.gguf")
    here = tmp_path / "here"
    (here / "file.gguf").symlink_to(tmp_path / "elsewhere/real.gguf")
    (here / "linked").symlink_to(tmp_path / "elsewhere")
    (here / "nowhere.gguf").symlink_to(tmp_path / "nothing")
    (here / "itself").symlink_to(here / "itself")
    assert names(here) == ["file", "own", "real"]


def test_what_is_neither_file_nor_folder_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert names(tmp_path) == []


def test_a_name_of_any_bytes_becomes_text(tmp_path: Path) -> None:
    try:
        touch(tmp_path, os.fsdecode(b"\xff.gguf"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert names(tmp_path) == ["?"]


def test_a_subfolder_that_cannot_be_read_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "sub/a.gguf", "b.gguf")
    scan = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert names(tmp_path) == ["b"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        names(tmp_path / "nothing")


def test_ten_thousand_files_are_listed_in_a_moment(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}.gguf").touch()
    began = time.perf_counter()
    assert len(names(tmp_path)) == 10_000
    assert time.perf_counter() - began < 5  # 0.25 s; what grows with the square takes minutes


def test_no_more_files_are_looked_at_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MOST_FILES", 10)
    touch(tmp_path, *(f"{number}.gguf" for number in range(20)))
    assert len(names(tmp_path)) == 10
