"""dllama's messages: what is read is what was written, and what is wrong is named, never believed.

The mutated sessions go through everything that a worker does before it computes: messages, checks,
lowering, the plan of its memory, and the arrival of weights. Nothing may come out but a sound
program or a ProtocolError, and no byte is allocated because a peer says so.
"""

import contextlib
import itertools
import random
import struct
from dataclasses import replace
from functools import cache

import dllama_lies
import dllama_recording
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_memory import traced_memory

from airllm.backends import load_backend
from airllm.cluster.checks import Program
from airllm.cluster.lowering import lower
from airllm.cluster.node import buffer_bytes, cache_bytes
from airllm.cluster.node_config import read_node_config
from airllm.cluster.protocol import (
    Control,
    WeightHeader,
    encode_ack,
    parse_control,
    read_handshake,
    read_net_config,
    read_weight_header,
)
from airllm.cluster.weights import Arrivals
from airllm.cluster.wire import Fields, FloatType, ProtocolError, Size, take_from

LINKS = [
    (name, worker)
    for name in dllama_recording.NAMES
    for worker, order in dllama_recording.read_recording(name)[0]
    if order == 0
]


@cache
def session(name, worker=0):
    """What a root sent to a worker, up to the first step: (bytes, where weights begin)."""
    data = bytes(dllama_recording.read_recording(name)[0][worker, 0].to_worker)
    at = 0

    def take(n):
        nonlocal at
        at += n
        return data[at - n : at]

    handshake = read_handshake(take)
    take(4)
    net = read_net_config(take, handshake)
    read_node_config(take, handshake, net)
    begin = at
    while (header := read_weight_header(take)) is not None:
        take(header.nbytes)
    return data[:at], begin


def receive(data, take=None):
    """A run up to its first step."""
    take = take or take_from(data)
    handshake = read_handshake(take)
    Fields(take, "everybody is there").ack()
    net = read_net_config(take, handshake)
    program = Program(net, read_node_config(take, handshake, net))
    lowered = lower(program)
    assert buffer_bytes(lowered, program, load_backend("numpy")) >= 0
    assert cache_bytes(lowered, program) >= 0
    arrivals = Arrivals(program.weights)
    while (header := read_weight_header(take)) is not None:
        for _ in arrivals.expect(header):
            take(program.weights[header.name, header.index].plane_bytes)
    arrivals.finish()
    return program


@pytest.mark.parametrize(("name", "worker"), LINKS)
def test_messages_written_again_are_the_bytes_that_were_read(name, worker):
    data, begin = session(name, worker)
    take = take_from(data)
    handshake = read_handshake(take)
    take(4)
    net = read_net_config(take, handshake)
    node = read_node_config(take, handshake, net)
    again = handshake.encode() + encode_ack() + net.encode() + node.encode()
    assert again == data[:begin]
    headers = []
    while (header := read_weight_header(take)) is not None:
        headers.append(header.encode())
        take(header.nbytes)
    assert len(headers) == len(Program(net, node).weights) or "moe" in name
    assert all(header in data for header in headers)


def some_or_all(places, amount):
    """All of the places, in their order, or a sample of them that is the same in every run."""
    places = sorted(places)
    return places if amount == "all" else sorted(random.Random(0).sample(places, 150))


AMOUNTS = ["some", pytest.param("all", marks=pytest.mark.fuzz)]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_session_that_ends_anywhere_is_an_error(amount):
    """Every end within the configs; after them, where weights differ only in their bytes, the first
    and last byte of every read, as all between are the same to the reader."""
    data, begin = session("llama-q40")
    ends = {*range(begin)}
    at = 0

    def take(n):
        nonlocal at
        ends.update((at, at + 1, at + n - 1))
        at += n
        return data[at - n : at]

    receive(data, take)
    for end in some_or_all(ends, amount):
        with pytest.raises(ProtocolError, match=f"the stream ends after {end} bytes"):
            receive(data[:end])


WORDS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 31, 32, 33, 255, 256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)


changed_words = given(
    name=st.sampled_from(dllama_recording.NAMES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), WORDS), min_size=1, max_size=3),
)


@changed_words
@settings(max_examples=150)
def test_a_session_with_changed_words_gives_a_sound_program_or_an_error(name, changes):
    check_changed_words(name, changes)


@pytest.mark.fuzz
@changed_words
@settings(max_examples=2000)
def test_many_sessions_with_changed_words_give_sound_programs_or_errors(name, changes):
    check_changed_words(name, changes)


def check_changed_words(name, changes):
    data, begin = session(name)
    changed = bytearray(data)
    for place, word in changes:
        at = int(place * (begin - 4))
        changed[at : at + 4] = struct.pack("<I", word)
    check_refused_or_sound(bytes(changed))


moved_piece = given(
    name=st.sampled_from(dllama_recording.NAMES),
    start=st.floats(0, 1, exclude_max=True),
    length=st.integers(1, 200),
    to=st.floats(0, 1, exclude_max=True),
)


@moved_piece
@settings(max_examples=100)
def test_a_session_with_a_piece_moved_gives_a_sound_program_or_an_error(name, start, length, to):
    check_moved_piece(name, start, length, to)


@pytest.mark.fuzz
@moved_piece
@settings(max_examples=1000)
def test_many_sessions_with_a_piece_moved_give_sound_programs_or_errors(name, start, length, to):
    check_moved_piece(name, start, length, to)


def check_moved_piece(name, start, length, to):
    data, begin = session(name)
    at, target = int(start * begin), int(to * begin)
    piece = data[at : at + length]
    check_refused_or_sound(data[:target] + piece + data[target:])


@given(junk=st.binary(max_size=300))
@settings(max_examples=300)
def test_junk_is_an_error(junk):
    with pytest.raises(ProtocolError):
        receive(junk)


def check_refused_or_sound(data):
    """Any other exception fails the test."""
    with contextlib.suppress(ProtocolError):
        assert receive(data).weights


@pytest.mark.parametrize("amount", AMOUNTS)
def test_no_memory_follows_what_a_peer_claims(amount):
    data, begin = session("llama31-f32")
    claims = itertools.cycle([2**20, 2**31 - 1, 2**32 - 1])
    with traced_memory() as traced:
        for at in some_or_all(range(0, begin, 4), amount):
            changed = data[:at] + struct.pack("<I", next(claims)) + data[at + 4 :]
            check_refused_or_sound(changed)
    assert traced.peak < 20 * len(data)


@pytest.mark.parametrize(
    ("at", "word", "says"),
    [
        (8, 7, "everybody is there: the acknowledgement is 7; expected 23571114"),
        (12, 7, "net config: the acknowledgement is 7; expected 23571114"),
        (16, 0, "net config: the number of rows is 0; expected 1 to 255"),
        (16, 256, "net config: the number of rows is 256; expected 1 to 255"),
        (20, 3, "net config: the number of nodes is 3; expected 2, as the handshake said 1"),
        (
            28,
            9,
            "net config, pipe 0: the type of its size is 9; expected one of -1 (NONE), 0 (F32)",
        ),
        (40, 2, "net config, pipe 0: the length of its size is 32; expected 64 for F32 1x32x2"),
    ],
)
def test_an_error_names_message_field_and_value(at, word, says):
    data, _ = session("llama-q40")
    with pytest.raises(ProtocolError) as caught:
        receive(data[:at] + struct.pack("<I", word) + data[at + 4 :])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (b"block_matmul_r\0", "weight 'block_matmul_r' 0: no op of this node has that name"),
        (b"block\x1bmatmul_q\0", "weight: its name is 'block\\x1bmatmul_q\\x00'; expected visible"),
    ],
)
def test_a_weight_of_another_name_is_an_error(change, says):
    data, begin = session("llama-q40")
    with pytest.raises(ProtocolError) as caught:
        receive(data[: begin + 4] + change + data[begin + 4 + len(change) :])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "nbytes", "says"),
    [
        (0, 0, "the number of its bytes is 0; expected a multiple of 1152"),
        (0, 1153, "the number of its bytes is 1153"),
        (1152, 1152, "its offset is 1152; expected a multiple of 1152 that leaves room"),
        (2**63, 1152, "its offset is 9223372036854775808"),
        (0, 2**64 - 1, "the number of its bytes is 18446744073709551615"),
    ],
)
def test_a_weight_that_does_not_fit_is_an_error(offset, nbytes, says):
    data, begin = session("llama-q40")
    header = read_weight_header(take_from(data[begin:]))
    assert header is not None
    at = begin + len(header.encode()) - 16
    with pytest.raises(ProtocolError) as caught:
        receive(data[:at] + struct.pack("<QQ", offset, nbytes) + data[at + 16 :])
    assert says in str(caught.value)


def test_a_weight_that_comes_twice_or_not_at_all_is_an_error():
    data, begin = session("llama-q40")
    header = read_weight_header(take_from(data[begin:]))
    assert header is not None
    end = begin + len(header.encode()) + header.nbytes
    with pytest.raises(ProtocolError, match="came already"):
        receive(data[:end] + data[begin:])
    with pytest.raises(ProtocolError, match=f"{header.nbytes} of {header.nbytes} bytes are miss"):
        receive(data[:begin] + data[end:])


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (Control(0, 33), "the number of rows is 33; expected at most 32"),
        (Control(60, 5), "the last position is 64; expected below 64"),
        (Control(11, 1), "the position is 11; expected at most 10, the first without keys"),
    ],
)
def test_a_step_that_makes_no_sense_is_an_error(control, says):
    with pytest.raises(ProtocolError) as caught:
        parse_control(control.encode(), 32, 64, 10)
    assert says in str(caught.value)


def test_a_weight_that_begins_inside_a_plane_is_an_error():
    arrivals = Arrivals({("w", 0): Size(FloatType.F32, 3, 4, 8)})
    assert list(arrivals.expect(WeightHeader("w", 0, 128, 256))) == [1, 2]
    with pytest.raises(ProtocolError, match="its offset is 64; expected a multiple of 128"):
        list(arrivals.expect(WeightHeader("w", 0, 64, 128)))


def test_a_step_behind_the_end_is_an_error_also_where_its_position_is_not():
    with pytest.raises(ProtocolError, match="the last position is 64; expected below 64"):
        parse_control(Control(60, 5).encode(), 32, 64, 60)


@pytest.mark.parametrize(
    ("pipe", "change", "says"),
    [
        (2, {"y": 31}, "net config, pipe 2: its size is F32 1x31x64; expected 1x32x..."),
        (2, {"z": 2}, "net config, pipe 2: its size is F32 2x32x64; expected 1x32x..."),
        (2, {"type": FloatType.F16}, "net config, pipe 2: its type is F16; expected F32 or Q80"),
        (4, {"x": 130}, "net config, pipe 4: its size is Q80 1x32x130; expected rows of whole"),
        (0, {"x": 2}, "net config: pipe 0 is F32 1x32x2; expected F32 1x32x1, for positions"),
    ],
)
def test_a_pipe_that_does_not_fit_is_an_error(pipe, change, says):
    handshake, net, node = dllama_lies.recorded("llama-q40", 0)
    pipes = list(net.pipes)
    pipes[pipe] = replace(pipes[pipe], size=replace(pipes[pipe].size, **change))
    changed = dllama_lies.encoded(handshake, replace(net, pipes=tuple(pipes)), node)
    with pytest.raises(ProtocolError) as caught:
        receive(changed)
    assert says in str(caught.value)


def test_no_rows_mean_stop_whatever_the_position():
    assert parse_control(Control(2**32 - 1, 0).encode(), 32, 64, 0).rows == 0
