"""Which of those who connected are the other workers: who stays, is silent, and brings a slice."""

import contextlib
import select
import socket
import threading

import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_root import Root
from worker_threads import addresses, workers

from airllm.cluster.link import Link, LinkError
from airllm.cluster.peers import likely, proved


@pytest.fixture
def visitors():
    """n of them: (our link, their socket) each."""
    with contextlib.ExitStack() as stack:

        def connect(n):
            pairs = []
            with socket.create_server(("127.0.0.1", 0)) as server:
                for number in range(n):
                    far = stack.enter_context(socket.create_connection(server.getsockname()))
                    link = Link(server.accept()[0], f"visitor {number}", 5.0)
                    stack.callback(link.close)
                    pairs.append((link, far))
            return [link for link, _ in pairs], [far for _, far in pairs]

        yield connect


def say(link, far, data):
    """Say it, and wait until it is there."""
    far.sendall(data)
    while not link.has_bytes(len(data)):
        pass


def test_those_who_are_silent_are_likely_where_they_are_enough(visitors):
    links, far = visitors(3)
    say(links[1], far[1], b"GET /")
    assert likely(links, 2) == [links[0], links[2]]


def test_those_who_talk_are_likely_too_where_others_are_not_enough(visitors):
    links, far = visitors(3)
    say(links[1], far[1], b"early")
    assert likely(links, 3) == links


def test_who_has_left_is_not_likely(visitors):
    links, far = visitors(2)
    far[0].close()
    while True:
        try:
            links[0].check_open()
        except LinkError:
            break
    assert likely(links, 1) == [links[1]]
    with pytest.raises(LinkError, match="another worker left before its first slice"):
        likely(links, 2)


def test_the_first_that_bring_a_slice_are_the_workers_in_order_of_arrival(visitors):
    links, far = visitors(4)
    say(links[3], far[3], bytes(100))
    say(links[1], far[1], bytes(100))
    say(links[0], far[0], b"SSH-2.0")
    assert proved(links, 2, 100, 5.0) == [links[1], links[3]]
    assert links[1].take(100) == bytes(100)
    assert links[0].sock.fileno() == links[2].sock.fileno() == -1


def test_a_workers_next_bytes_are_read_as_they_come(visitors):
    links, far = visitors(2)
    say(links[0], far[0], bytes(100))
    [link] = proved(links, 1, 100, 5.0)
    assert link.take(100) == bytes(100)
    say(link, far[0], b"x")
    assert select.select([link.sock], [], [], 0)[0]
    assert link.take(1) == b"x"


def test_who_leaves_in_the_middle_of_a_slice_is_no_worker(visitors):
    links, far = visitors(2)
    say(links[0], far[0], bytes(99))
    far[0].close()
    timer = threading.Timer(0.02, far[1].sendall, (bytes(100),))
    timer.start()
    assert proved(links, 1, 100, 5.0) == [links[1]]
    timer.join()


def test_a_slice_that_is_longer_than_sockets_hold_need_not_be_there_whole(visitors):
    links, far = visitors(2)
    say(links[1], far[1], bytes(5000))
    assert proved(links, 1, 10**9, 5.0) == [links[1]]


def test_workers_that_bring_nothing_are_given_up(visitors):
    links, _ = visitors(2)
    with pytest.raises(LinkError, match=r"1 other workers were silent for 0\.02 s"):
        proved(links, 1, 100, 0.02)


def test_workers_that_all_leave_are_an_error(visitors):
    links, far = visitors(2)
    far[0].close()
    far[1].close()
    with pytest.raises(LinkError, match="another worker left before its first slice"):
        proved(links, 1, 100, 5.0)


# ---- strangers in the moment when workers connect ----


@pytest.fixture(scope="module")
def model():
    shape = Shape("llama", True, dim=128, hidden=128, layers=1, heads=4, kv_heads=4, length=40)
    return Model(shape)


def knock(made):
    return socket.create_connection(made.address, 10)


STRANGERS = {
    "leaves at once": lambda sock: sock.close(),
    "stays and is silent": lambda sock: None,
    "says what a web server is asked": lambda sock: sock.sendall(b"GET / HTTP/1.1\r\n\r\n"),
    "says a word and leaves": lambda sock: (sock.sendall(b"\n"), sock.close()),
}


@pytest.mark.parametrize("does", STRANGERS)
@pytest.mark.parametrize("stage", ["everybody", "net", "weights"])
def test_a_stranger_takes_no_workers_place(model, stage, does):
    """It comes before the other workers, between, or after them."""
    with workers(3) as made, contextlib.ExitStack() as stack:

        def disturb(name):
            if name == stage:
                for worker in made[1:]:
                    STRANGERS[does](stack.enter_context(knock(worker)))

        root = Root(model, addresses(made), stage=disturb)
        logits = root.run(model.tokens)
        root.stop()
        expected = model.reference(model.tokens, 4)
        assert np.abs(logits - expected).max() <= 0.03 * np.abs(expected).max()
        for worker in made:
            worker.report.wait_for("run_over")


def test_a_stranger_that_speaks_up_in_the_middle_of_the_first_step_is_no_worker(model):
    with workers(3) as made, contextlib.ExitStack() as stack:
        strangers = []

        def disturb(name):
            if name == "everybody":
                strangers.extend(stack.enter_context(knock(worker)) for worker in made[1:])

        root = Root(model, addresses(made), stage=disturb)
        for stranger in strangers:
            stranger.sendall(b"SSH-2.0-scanner\r\n")
        logits = root.run(model.tokens)
        root.stop()
        expected = model.reference(model.tokens, 4)
        assert np.abs(logits - expected).max() <= 0.03 * np.abs(expected).max()
