"""Models in several GGUF files: opened by the first, each checked against the others."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_writer import gguf_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from split_model import part_name, split_bytes, write_split
from test_gguf_mutations import read_whole
from test_gguf_mutations import traced as traced
from traced_memory import traced_memory

from airllm.formats.gguf import FormatError, GGUFFile

METADATA = {"general.architecture": "llama", "words": ["a", "b"]}


def spec(name, n=3):
    data = np.full((n, 34), len(name), np.uint8)
    data[:, 0] = np.arange(n)
    return name, "q8_0", (n, 32), data


PARTS = [[spec("a")], [spec("bb"), spec("ccc", 5)], [spec("dddd")]]
NAMES = [part_name(number, 3) for number in (1, 2, 3)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_split(tmp_path, METADATA, PARTS)


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as error:
        GGUFFile.open(path)
    return str(error.value)


def test_the_first_part_opens_all(model: Path) -> None:
    with GGUFFile.open(model) as file:
        assert file.metadata["words"] == ["a", "b"]
        assert list(file.tensors) == ["a", "bb", "ccc", "dddd"]
        assert [part.path.name for part in file.parts] == NAMES
        memory = np.empty(4096, np.uint8)
        for name, _, _, data in itertools.chain(*PARTS):
            np.testing.assert_array_equal(file.data(name), data)
            np.testing.assert_array_equal(file.read(name, memory), data)


def test_an_extent_says_in_which_file_a_tensor_is(model: Path) -> None:
    with GGUFFile.open(model) as file:
        (extent,) = file.tensors["ccc"].extents
        part = file.parts[extent.part]
        assert part.path.name == NAMES[1]
        raw = part.path.read_bytes()[extent.offset : extent.offset + extent.nbytes]
        assert raw == PARTS[1][1][3].tobytes()


def test_rows_are_read_by_themselves(model: Path) -> None:
    with GGUFFile.open(model) as file:
        rows = file.read("ccc", np.empty(68, np.uint8), rows=(2, 4))
        np.testing.assert_array_equal(rows, PARTS[1][1][3][2:4])


def test_a_first_part_without_tensors_is_opened(tmp_path: Path) -> None:
    with GGUFFile.open(write_split(tmp_path, METADATA, [[], *PARTS])) as file:
        assert len(file.tensors) == 4
        assert len(file.fingerprint()) == 32


def test_a_change_of_any_part_is_noticed(model: Path) -> None:
    with GGUFFile.open(model) as file:
        with model.with_name(NAMES[2]).open("ab") as part:
            part.write(b"x")
        with pytest.raises(FormatError, match=f"{NAMES[2]}: the file was changed"):
            file.check_unchanged()


def test_the_fingerprint_depends_on_every_part(tmp_path: Path) -> None:
    prints = set()
    for at, change in enumerate([None, "a", "ccc", "dddd"]):
        folder = tmp_path / str(at)
        folder.mkdir()
        parts = [[(n, t, s, d + (n == change)) for n, t, s, d in part] for part in PARTS]
        with GGUFFile.open(write_split(folder, METADATA, parts)) as file:
            prints.add(file.fingerprint())
    assert len(prints) == 4


def test_a_missing_part_is_named(model: Path) -> None:
    model.with_name(NAMES[1]).unlink()
    assert refusal(model) == f"{model}: a split model whose part {NAMES[1]} is missing"


def test_a_later_part_is_refused_with_the_name_of_the_first(model: Path) -> None:
    message = refusal(model.with_name(NAMES[1]))
    assert message.endswith(f"part 2 of 3 of a split model; give {NAMES[0]}")


def test_a_renamed_first_part_is_refused(model: Path) -> None:
    renamed = model.rename(model.with_name("mine.gguf"))
    assert "must end in -00001-of-00003.gguf" in refusal(renamed)


def test_parts_whose_names_were_swapped_are_refused(model: Path) -> None:
    second, third = (model.with_name(name) for name in NAMES[1:])
    kept = second.read_bytes()
    third.rename(second)
    third.write_bytes(kept)
    assert f"{second}: split.no is 2; expected 1 in part 2 of {NAMES[0]}" in refusal(model)


@pytest.mark.parametrize(
    ("metadata", "parts", "fault"),
    [
        (METADATA, [[spec("x")], [spec("y")], [spec("z")]], "split.tensors.count is 3; expected 4"),
        (METADATA, [[spec("x")], [spec("y")]], "split.count is 2; expected 3"),
    ],
)
def test_a_part_of_another_model_is_refused(model: Path, metadata, parts, fault: str) -> None:
    foreign = list(split_bytes(metadata, parts).values())[1]
    model.with_name(NAMES[1]).write_bytes(foreign)
    message = refusal(model)
    assert message.startswith(f"{model.with_name(NAMES[1])}: {fault}")
    assert "belongs to another model" in message


def test_a_part_of_another_model_with_as_many_tensors_is_seen_by_their_names(model: Path) -> None:
    other = split_bytes(METADATA, [[spec("e")], [spec("a"), spec("f")], [spec("g")]])
    model.with_name(NAMES[1]).write_bytes(other[NAMES[1]])
    assert "tensor 'a' is in two parts" in refusal(model)


def test_parts_that_lack_tensors_together_are_refused(model: Path) -> None:
    keys = {f"split.{k}": np.int32(v) for k, v in {"no": 2, "count": 3, "tensors.count": 4}.items()}
    model.with_name(NAMES[2]).write_bytes(gguf_bytes(keys))
    assert "has 3 tensors in all its parts; split.tensors.count says 4" in refusal(model)


def test_the_limit_of_tensors_is_that_of_all_parts_together(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many small parts as names allow would hold billions."""
    monkeypatch.setattr("airllm.formats.gguf.MAX_TENSORS", 2)
    assert "more than 2 tensors" in refusal(model)


def test_a_whole_model_in_a_parts_place_is_refused(model: Path) -> None:
    model.with_name(NAMES[1]).write_bytes(gguf_bytes(METADATA, PARTS[1]))
    assert f"{NAMES[1]}: split.no is missing" in refusal(model)


def test_a_truncated_part_is_refused_by_its_name(model: Path) -> None:
    part = model.with_name(NAMES[1])
    part.write_bytes(part.read_bytes()[:-40])
    assert refusal(model).startswith(f"{part}: tensor 'ccc'")


def test_a_claim_of_many_parts_ends_at_the_first_that_is_missing(tmp_path: Path) -> None:
    keys = {"split.no": 0, "split.count": 99_999, "split.tensors.count": 1}
    path = tmp_path / "model-00001-of-99999.gguf"
    path.write_bytes(gguf_bytes(METADATA | keys))
    assert "part model-00002-of-99999.gguf is missing" in refusal(path)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 2), st.integers(0, 200), st.sampled_from([0, 1, 2, 255, 2**16, 2**31 - 1]))
def test_damage_to_a_parts_header_opens_whole_or_is_refused(
    tmp_path: Path, traced: None, part: int, at: int, value: int
) -> None:
    files = split_bytes(METADATA, PARTS)
    raw = files[NAMES[part]]
    at = min(at, len(raw) - 4)
    files[NAMES[part]] = raw[:at] + struct.pack("<I", value) + raw[at + 4 :]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with traced_memory() as memory:
        refused = read_whole(tmp_path / NAMES[0])
    assert memory.peak < 512 * 1024
    assert refused is None or refused.startswith(f"{tmp_path}/model-")
