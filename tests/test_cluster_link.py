"""Connections between nodes: exact reads, timeouts, and both ways at once."""

import ipaddress
import itertools
import socket
import struct
import threading
import time

import numpy as np
import pytest

from airllm.cluster import link as link_module
from airllm.cluster.door import LOOPBACK, is_allowed
from airllm.cluster.exchange import Exchange
from airllm.cluster.link import Link, LinkError, Patience, transfer
from airllm.cluster.node_config import Sync
from airllm.cluster.protocol import NetConfig, Pipe, SyncType
from airllm.cluster.wire import FloatType, Size


@pytest.fixture
def pair():
    """Two ends of a TCP connection, each a Link."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
    links = Link(left, "left", 5.0), Link(right, "right", 5.0)
    yield links
    for link in links:
        link.close()


def view(n, value=0):
    return memoryview(bytearray([value]) * n)


def test_messages_are_taken_and_what_follows_is_not_lost(pair):
    a, b = pair
    a.send(bytes(range(100)))
    assert b.take(3) == bytes([0, 1, 2])
    assert b.take(4) == bytes([3, 4, 5, 6])
    rest = view(93)
    b.read_into(rest)
    assert bytes(rest) == bytes(range(7, 100))


def test_a_long_message_arrives_whole(pair):
    a, b = pair
    data = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
    sender = threading.Thread(target=a.send, args=(data,))
    sender.start()
    assert b.take(len(data)) == data
    sender.join()


def test_both_may_write_more_than_sockets_hold(pair):
    n = 20_000_000
    received = view(n), view(n)
    sides = [
        threading.Thread(target=transfer, args=([(link, view(n, i + 1))], [(link, received[i])]))
        for i, link in enumerate(pair)
    ]
    for side in sides:
        side.start()
    for side in sides:
        side.join(20)
    assert bytes(received[0]) == bytes([2]) * n
    assert bytes(received[1]) == bytes([1]) * n


def test_a_patience_for_some_bytes_alone_ends_with_them(pair):
    a, b = pair
    timer = threading.Timer(0.02, a.send, (b"x",))
    timer.start()
    b.read_soon(view(1), 0.0, 60.0)
    timer.join()
    limit = b.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert struct.unpack("@ll", limit) == (5, 0)


@pytest.mark.parametrize("spin", [0.0, 0.01])
def test_what_comes_while_or_after_looking_for_it_is_read(pair, spin):
    a, b = pair
    a.send(b"early")
    got = view(8)
    timer = threading.Timer(0.02, a.send, (b"ago",))
    timer.start()
    b.read_soon(got, spin)
    timer.join()
    assert bytes(got) == b"earlyago"


def test_where_others_want_the_processor_it_sleeps(pair, monkeypatch):
    a, b = pair
    yielded, milliseconds = [], itertools.count()
    monkeypatch.setattr(link_module.time, "perf_counter", lambda: next(milliseconds) / 1000)
    monkeypatch.setattr(link_module.os, "sched_yield", lambda: yielded.append(1))
    for _ in range(3):
        timer = threading.Timer(0.01, a.send, (b"x",))
        timer.start()
        b.read_soon(view(1), 0.5)  # a look takes a millisecond, in which somebody else ran
        timer.join()
    assert len(yielded) == 1


def test_silence_is_an_error_with_its_time(pair):
    _, b = pair
    b.set_timeout(0.05)
    for read in (lambda: b.take(1), lambda: b.read_into(view(1))):
        with pytest.raises(LinkError, match=r"right was silent for 0\.05 s"):
            read()


def test_a_peer_that_takes_nothing_is_silent_too(pair):
    a, _ = pair
    a.set_timeout(0.05)
    for send in (lambda: a.send(view(50_000_000)), lambda: transfer([(a, view(50_000_000))], [])):
        with pytest.raises(LinkError, match=r"left was silent for 0\.05 s"):
            send()


def test_a_closed_connection_is_an_error_everywhere(pair):
    a, b = pair
    a.close()
    for read in (lambda: b.take(1), lambda: b.read_into(view(1)), lambda: b.read_some(view(1))):
        with pytest.raises(LinkError, match="right closed the connection"):
            read()
    with pytest.raises(LinkError, match="right closed the connection"):
        b.check_open()


def test_a_connection_with_bytes_to_read_is_open(pair):
    a, b = pair
    b.check_open()
    a.send(b"xy")
    a.close()
    assert b.take(1) == b"x"
    b.check_open()
    assert b.take(1) == b"y"


def test_a_deadline_ends_a_message_that_drips(pair):
    a, b = pair
    b.set_deadline(time.monotonic() + 0.05)
    a.send(b"x")
    with pytest.raises(LinkError, match="right did not complete the handshake in time"):
        b.take(2)


def test_patience_is_bought_by_bytes_and_never_more_than_at_first():
    patience = Patience(10.0, rate=100.0)
    patience.spend(4.0, 100)
    assert patience.left == 7.0
    patience.spend(0.0, 1_000_000)
    assert patience.left == 10.0
    patience.spend(11.0, 50)
    assert patience.left == -0.5


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock that is two seconds on whenever it is read."""
    seconds = itertools.count(0.0, 2.0)
    monkeypatch.setattr(link_module.time, "monotonic", lambda: next(seconds))


def test_a_side_that_drips_through_many_small_messages_is_given_up(pair, slow_clock):
    a, b = pair
    b.be_patient(True)
    for _ in range(3):  # of five seconds' patience, each takes two
        a.send(b"x")
        b.take(1)
    a.send(b"x")
    with pytest.raises(LinkError, match="right was slower than 10000 bytes a second for too long"):
        b.take(1)


def test_a_side_that_is_fast_enough_may_take_long(pair, slow_clock):
    a, b = pair
    b.be_patient(True)
    for _ in range(10):
        a.send(bytes(20_000))
        got = view(20_000)
        b.read_into(got)


def test_a_message_that_drips_is_given_up(pair):
    a, b = pair
    b.set_timeout(0.05)
    a.send(b"x")
    with pytest.raises(LinkError, match="right was slower than 10000 bytes a second for too long"):
        b.read_into(view(2))
    b.set_timeout(5.0)
    a.send(b"yz")
    rest = view(2)
    b.read_into(rest)
    assert bytes(rest) == b"yz"


def test_a_deadline_ends_messages_that_come_one_by_one(pair, slow_clock):
    a, b = pair
    b.set_deadline(3.0)
    a.send(b"x")
    assert b.take(1) == b"x"
    a.send(b"y")
    with pytest.raises(LinkError, match="right did not complete the handshake in time"):
        b.take(1)


def test_a_sync_that_drips_is_given_up(pair, slow_clock):
    a, b = pair
    a.send(b"x" * 10)
    b.set_timeout(1.0)
    with pytest.raises(LinkError, match="right was slower than 10000 bytes a second for too long"):
        transfer([(b, view(50_000_000))], [(b, view(100))])


def test_shutdown_ends_a_wait_from_another_thread(pair):
    _, b = pair
    timer = threading.Timer(0.02, b.shutdown)
    timer.start()
    with pytest.raises(LinkError):
        b.take(1)
    timer.join()


# ---- syncs ----


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", [FloatType.F32, FloatType.Q80])
def test_slices_land_in_their_places(pair, kind, rows):
    """Nodes 0 and 1 of two, each with rows of its own."""
    net = NetConfig(4, 2, (Pipe(Size(kind, 1, 4, 128), "p"),))
    width = net.pipes[0].size.row_bytes
    pipes = [np.full((4, width), node + 1, np.uint8) for node in range(2)]
    for node in range(2):
        pipes[node][:, (1 - node) * width // 2 : (2 - node) * width // 2] = 0
    nodes = [Exchange(net, node, [pipes[node]], {1 - node: link}) for node, link in enumerate(pair)]
    sync = Sync(0, SyncType.NODE_SLICES)
    threads = [threading.Thread(target=node.run, args=(sync, rows)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for pipe in pipes:
        assert (pipe[:rows, : width // 2] == 1).all()
        assert (pipe[:rows, width // 2 :] == 2).all()
    assert (pipes[0][rows:, width // 2 :] == 0).all()


# ---- who is allowed ----


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.1.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_is_this_machine_alone(address, allowed):
    assert is_allowed(address, LOOPBACK) is allowed


def test_a_network_allows_its_addresses_of_its_kind():
    network = [ipaddress.ip_network("192.168.1.0/24")]
    assert is_allowed("192.168.1.77", network)
    assert is_allowed("::ffff:192.168.1.77", network)
    assert not is_allowed("192.168.2.1", network)
    assert not is_allowed("::1", network)
