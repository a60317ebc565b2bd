"""A worker and what may happen to it: roots that die, strangers, floods, limits, the end.

After each the worker must serve the next root, at once.
"""

import contextlib
import socket
import struct
import threading
import time

import dllama_recording
import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_root import ROWS, Root
from worker_threads import addresses, workers

from airllm.cluster.link import LinkError
from airllm.cluster.protocol import NO_MORE_WEIGHTS, Control, Handshake, encode_ack
from airllm.cluster.run import Run
from airllm.cluster.wire import encode_name, encode_u32

SMALL = Shape("llama", True, dim=128, hidden=128, layers=1, heads=4, kv_heads=4, length=40)


@pytest.fixture(scope="module")
def model():
    return Model(SMALL)


def serves(model, made):
    """Whether a root gets its logits."""
    root = connect(model, made)
    logits = root.run(model.tokens[:3])
    root.stop()
    expected = model.reference(model.tokens[:3], len(made) + 1)
    return np.abs(logits - expected).max() <= 0.03 * np.abs(expected).max()


def connect(model, made):
    """A root; where the worker takes it for one more worker of a run that is just ending, it tries
    again, as roots do."""
    for _ in range(20):
        with contextlib.suppress(LinkError):
            return Root(model, addresses(made), backend="cpp")
    return Root(model, addresses(made), backend="cpp")


def dial(worker):
    return socket.create_connection(worker.address, 10)


class DiedError(Exception):
    pass


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stage", ["everybody", "net", "node", "weights"])
def test_a_root_that_dies_before_the_first_step_is_followed_by_the_next(model, stage, n):
    def die(name):
        if name == stage:
            raise DiedError

    with workers(n) as made:
        with pytest.raises(DiedError):
            Root(model, addresses(made), stage=die)
        assert serves(model, made)


@pytest.mark.parametrize("n", [1, 3])
def test_a_root_that_dies_inside_a_step_is_followed_by_the_next(model, n):
    with workers(n) as made:
        root = Root(model, addresses(made))
        for link in root.links.values():
            link.send(Control(0, ROWS).encode() + bytes(100))
        root.close()
        assert serves(model, made)


def test_a_root_that_leaves_while_the_worker_writes_is_followed_by_the_next(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        rows = bytes(4 * SMALL.dim * ROWS)
        root.links[1].send(Control(0, ROWS).encode() + rows)
        root.links[1].sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4)
        )
        root.close()  # with a reset
        assert serves(model, made)


def test_a_root_that_says_too_many_rows_is_told_apart_in_the_log(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        root.links[1].send(Control(0, ROWS + 1).encode())
        [text] = made[0].report.wait_for("run_failed")
        assert text == (
            "the run ended: control packet: the number of rows is 33; "
            "expected at most 32, as the net config said"
        )
        root.close()
        assert serves(model, made)


def test_a_position_behind_the_end_ends_the_run(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        root.run(model.tokens)
        root.links[1].send(Control(SMALL.length, 1).encode())
        [text] = made[0].report.wait_for("run_failed")
        assert "the last position is 40; expected below 40" in text
        root.close()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encode_u32(0, 0), "handshake: the number of workers is 0; expected 1 to 1023"),
        (encode_u32(1, 1), "handshake: this worker's index is 1; expected less than 1"),
        (Handshake(1, 0, ()).encode() + encode_u32(7), "everybody is there: the acknowledgement"),
        (b"GET / HTTP/1.1\r\n\r\n", "handshake: the number of workers is 542393671"),
    ],
)
def test_a_wrong_word_ends_the_run_with_one_line(model, data, says):
    with workers(1) as made:
        with dial(made[0]) as sock:
            sock.sendall(data)
            [text] = made[0].report.wait_for("run_failed")
        assert says in text
        assert serves(model, made)


def test_a_port_scan_starts_no_run(model):
    with workers(1) as made:
        dial(made[0]).close()
        [text] = made[0].report.wait_for("turned_away")
        assert text.endswith("it left without a word")
        assert serves(model, made)
        assert made[0].report.texts("run_failed") == []


def test_silent_visitors_hold_nobody_up(model):
    with workers(1) as made, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(dial(made[0]))
        assert serves(model, made)


def test_a_root_that_falls_silent_in_the_handshake_is_given_up(model):
    with workers(1, handshake_timeout=0.2) as made:
        with dial(made[0]) as sock:
            sock.sendall(Handshake(1, 0, ()).encode())
            [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: the root did not complete the handshake in time"
        made[0].be_patient()
        assert serves(model, made)


def test_a_root_that_drips_bytes_does_not_stretch_the_handshake(model):
    with workers(1, handshake_timeout=0.3) as made, dial(made[0]) as sock:
        handshake = Handshake(2, 0, (("127.0.0.1", 1),)).encode()
        sock.sendall(handshake[:8])
        for byte in handshake[8:]:
            with contextlib.suppress(OSError):
                sock.sendall(bytes([byte]))
            if made[0].report.texts("run_failed"):
                break
            threading.Event().wait(0.05)
        [text] = made[0].report.wait_for("run_failed")
        assert "in time" in text


def test_a_root_that_drips_weights_is_given_up(model):
    data = bytes(dllama_recording.read_recording("llama-q40")[0][0, 0].to_worker)
    first_weight = encode_name("block_matmul_q") + struct.pack("<IQ", 0, 0)
    with workers(1, silence_timeout=0.2, min_rate=1e9) as made, dial(made[0]) as sock:
        at = data.index(first_weight) + len(first_weight)
        sock.sendall(data[:at])
        for byte in data[at:]:
            with contextlib.suppress(OSError):
                sock.sendall(bytes([byte]))
            if made[0].report.texts("run_failed"):
                break
            threading.Event().wait(0.01)
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: the root was slower than 1e+09 bytes a second for too long"
        made[0].be_patient()
        assert serves(model, made)


def test_a_root_that_drips_what_announces_a_weight_is_given_up(model):
    """Each byte comes in time, all together do not."""
    data = bytes(dllama_recording.read_recording("llama-q40")[0][0, 0].to_worker)
    first = encode_name("block_matmul_q") + struct.pack("<IQ", 0, 0)
    at = data.index(first)
    with workers(1, silence_timeout=1.0, min_rate=1e9) as made, dial(made[0]) as sock:
        sock.sendall(data[:at])
        for byte in data[at : at + len(first)]:
            with contextlib.suppress(OSError):
                sock.sendall(bytes([byte]))
            if made[0].report.texts("run_failed"):
                break
            threading.Event().wait(0.05)
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: the root was slower than 1e+09 bytes a second for too long"


def test_a_root_that_sends_no_weights_is_told_which_are_missing(model):
    data = bytes(dllama_recording.read_recording("llama-q40")[0][0, 0].to_worker)
    with workers(1) as made, dial(made[0]) as sock:
        sock.sendall(data[: data.index(encode_name("block_matmul_q") + encode_u32(0, 0, 0))])
        sock.sendall(NO_MORE_WEIGHTS)
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: weight 'block_norm_0' 0: 256 of 256 bytes are missing"


def test_a_position_whose_keys_are_missing_ends_the_run(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        root.run(model.tokens[:3])
        root.links[1].send(Control(4, 1).encode())
        [text] = made[0].report.wait_for("run_failed")
        assert "the position is 4; expected at most 3, the first without keys" in text
        root.close()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("7 GB"), "out of memory: 7 GB"),
        (OSError(5, "Input/output error", "weights"), "Input/output error: 'weights'"),
        (KeyError("a fault of ours"), "KeyError: 'a fault of ours'"),
    ],
)
def test_whatever_goes_wrong_in_a_run_the_next_root_is_served(model, error, says, monkeypatch):
    def fail(*_):
        raise error

    with workers(1) as made:
        with monkeypatch.context() as patch, dial(made[0]) as sock:
            patch.setattr(Run, "_serve", fail)
            sock.sendall(Handshake(1, 0, ()).encode())
            [text] = made[0].report.wait_for("run_failed")
        assert says in text
        assert serves(model, made)


def test_a_root_that_is_idle_for_too_long_is_given_up(model):
    with workers(1, idle_timeout=0.2) as made:
        root = Root(model, addresses(made))
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: the root was silent for 0.2 s"
        root.close()
        made[0].be_patient()
        assert serves(model, made)


def test_a_second_root_is_turned_away_at_once(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        with dial(made[0]) as second:
            second.settimeout(5)
            assert second.recv(1) == b""
        [text] = made[0].report.wait_for("turned_away")
        assert text.endswith("a root is being served")
        root.run(model.tokens)
        root.stop()


def test_strangers_are_turned_away(model):
    import ipaddress

    with workers(1, networks=[ipaddress.ip_network("192.0.2.0/24")]) as made:
        with dial(made[0]) as sock:
            assert sock.recv(1) == b""
        [text] = made[0].report.wait_for("turned_away")
        assert text.endswith("its network is not allowed (--allow)")


def test_a_worker_connects_only_to_networks_that_are_allowed(model):
    with workers(1) as made, dial(made[0]) as sock:
        sock.sendall(Handshake(2, 0, (("192.0.2.1", 22),)).encode())
        assert sock.recv(4) == encode_ack()
        sock.sendall(encode_ack())
        [text] = made[0].report.wait_for("run_failed")
        assert "worker 1 at 192.0.2.1:22: its network is not allowed" in text


def test_another_worker_that_is_not_there_ends_the_run(model):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with workers(1) as made:
        with dial(made[0]) as sock:
            sock.sendall(Handshake(2, 0, (("127.0.0.1", port),)).encode())
            assert sock.recv(4) == encode_ack()
            sock.sendall(encode_ack())
            [text] = made[0].report.wait_for("run_failed")
        assert text == f"the run ended: worker 1 at 127.0.0.1:{port}: Connection refused"
        assert serves(model, made)


def test_a_root_that_leaves_while_workers_wait_for_each_other_is_followed_by_the_next(model):
    with workers(1) as made:
        with dial(made[0]) as sock:
            sock.sendall(Handshake(2, 1, (("127.0.0.1", 1),)).encode())
            assert sock.recv(4) == encode_ack()
            sock.sendall(encode_ack())  # and worker 0 never comes
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: the root closed the connection"
        assert serves(model, made)


def test_a_worker_that_never_comes_ends_the_run_in_time(model):
    with workers(1, handshake_timeout=0.3) as made, dial(made[0]) as sock:
        sock.sendall(Handshake(2, 1, (("127.0.0.1", 1),)).encode())
        assert sock.recv(4) == encode_ack()
        sock.sendall(encode_ack())
        [text] = made[0].report.wait_for("run_failed")
        assert text == "the run ended: another worker did not connect in time"


def test_a_model_that_memory_has_no_room_for_is_refused_before_its_weights(model):
    with workers(1, ram=10_000_000) as made:
        with pytest.raises(Exception, match="closed the connection"):
            Root(Model(Shape("llama", False, dim=1024, length=4096, layers=1)), addresses(made))
        [text] = made[0].report.wait_for("run_failed")
        assert "too little" in text


def test_a_flood_of_connections_leaves_the_worker_serving(model):
    with workers(1) as made:
        root = Root(model, addresses(made))
        expected = root.run(model.tokens)
        for _ in range(1000):
            with contextlib.suppress(OSError):
                dial(made[0]).close()
        np.testing.assert_array_equal(root.run(model.tokens), expected)
        root.stop()
        assert serves(model, made)
        assert len(made[0].report.texts("turned_away")) < 100  # most are only counted


@pytest.mark.parametrize("sessions", [20, pytest.param(40, marks=pytest.mark.fuzz)])
def test_changed_and_broken_sessions_leave_the_worker_serving(model, sessions):
    data = bytes(dllama_recording.read_recording("llama-q40")[0][0, 0].to_worker)
    random = np.random.default_rng(0)
    with workers(1, handshake_timeout=5.0, silence_timeout=5.0) as made:
        for number in range(sessions):
            changed = bytearray(data)
            for at in random.integers(0, 8000, 3):
                changed[at] = random.integers(256)
            if number % 3 == 0:
                del changed[random.integers(len(data)) :]
            with dial(made[0]) as sock:
                deliver(sock, changed)
        assert serves(model, made)
        assert not any("should not" in text for _, text in made[0].report.events)


def deliver(sock, data):
    """Send, say that this was all, and wait until the worker has closed."""
    reader = threading.Thread(target=read_to_the_end, args=(sock,))
    reader.start()
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    reader.join(20)
    assert not reader.is_alive()


def read_to_the_end(sock):
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass


@pytest.mark.parametrize("when", ["listening", "handshake", "step"])
def test_it_stops_within_a_second_wherever_it_is(model, when):
    """The best of many attempts: others may use the machine."""

    def seconds():
        with workers(1) as made, contextlib.ExitStack() as stack:
            if when == "handshake":
                sock = stack.enter_context(dial(made[0]))
                sock.sendall(Handshake(1, 0, ()).encode())
                assert sock.recv(4) == encode_ack()
            elif when == "step":
                root = Root(model, addresses(made))
                stack.callback(root.close)
                root.links[1].send(Control(0, 1).encode())
            began = time.monotonic()
            made[0].stop()
            return time.monotonic() - began

    assert any(seconds() < 1 for _ in range(20))
