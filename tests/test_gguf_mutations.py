"""Hundreds of damaged GGUF files: each opens and can be read whole, or is refused by name.

The damage is what happens to files (flipped bits, cut tails, lost or repeated pieces) and what an
attacker does to them (a length, count, type or offset replaced by one chosen to overflow).
"""

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_gguf import small_model
from traced_memory import traced_memory

from airllm.formats.gguf import FormatError, GGUFFile

MODEL = small_model()
HEADER_END = MODEL.index(b"norm") + 32  # nearly all of the parsing is before this
Mutation = Callable[[bytes], bytes]

places = st.integers(0, HEADER_END) | st.integers(0, len(MODEL))
powers = st.sampled_from([0, 8, 16, 31, 32, 40, 61, 62, 63, 64])
evil_numbers = st.builds(lambda power, nudge: 2**power + nudge, powers, st.integers(-33, 33))


def flip(at: int, mask: int) -> Mutation:
    return lambda raw: raw[:at] + bytes(byte ^ mask for byte in raw[at : at + 1]) + raw[at + 1 :]


def truncate(at: int) -> Mutation:
    return lambda raw: raw[:at]


def rewrite(at: int, layout: str, value: int) -> Mutation:
    field = struct.pack(layout, value % 2 ** (8 * struct.calcsize(layout)))
    return lambda raw: raw[:at] + field + raw[at + len(field) :]


def remove(at: int, length: int) -> Mutation:
    return lambda raw: raw[:at] + raw[at + length :]


def splice(source: int, length: int, at: int) -> Mutation:
    return lambda raw: raw[:at] + raw[source : source + length] + raw[at:]


def overwrite(source: int, length: int, at: int) -> Mutation:
    return lambda raw: raw[:at] + raw[source : source + length] + raw[at + length :]


lengths = st.integers(1, 64)
mutations = st.one_of(
    st.builds(flip, places, st.integers(1, 255)),
    st.builds(truncate, places),
    st.builds(rewrite, places, st.sampled_from(["<I", "<Q"]), evil_numbers),
    st.builds(remove, places, lengths),
    st.builds(splice, places, lengths, places),
    st.builds(overwrite, places, lengths, places),
)


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    with traced_memory():  # starting once is faster than for every example
        yield


damages = given(st.lists(mutations, min_size=1, max_size=4))
sampling = settings(
    deadline=None,  # the check sets its own, below
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@settings(sampling, max_examples=100)
@damages
def test_a_damaged_file_opens_whole_or_is_refused(
    tmp_path: Path, traced: None, damage: list[Mutation]
) -> None:
    check_damaged(tmp_path, damage)


@pytest.mark.fuzz
@settings(sampling, max_examples=1000)
@damages
def test_many_damaged_files_open_whole_or_are_refused(
    tmp_path: Path, traced: None, damage: list[Mutation]
) -> None:
    check_damaged(tmp_path, damage)


def check_damaged(tmp_path: Path, damage: list[Mutation]) -> None:
    raw = MODEL
    for mutate in damage:
        raw = mutate(raw)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)

    started = time.process_time()
    with traced_memory() as traced:
        refusal = read_whole(path)

    assert time.process_time() - started < 1
    assert traced.peak < 256 * 1024  # whatever the 2.4 kB file claims
    event("refused" if refusal else "opened")
    assert refusal is None or refusal.startswith(f"{path}: ")
    assert len(refusal or "") < 500 + len(str(path))


def read_whole(path: Path) -> str | None:
    """Read every byte of every tensor; the message if the file is refused."""
    try:
        with GGUFFile.open(path) as file:
            for name, tensor in file.tensors.items():
                data = file.data(name)
                assert data.nbytes == tensor.nbytes
                data.sum()
    except FormatError as error:
        return str(error)
    return None
