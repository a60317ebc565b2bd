"""Who may come in, who is sent away, and the status socket."""

import contextlib
import os
import queue
import select
import socket
import stat

import pytest
from other_user import give_away

from airllm.cluster.door import LOOPBACK, Door
from airllm.cluster.link import Link, LinkError
from airllm.cluster.protocol import Handshake

ROOT = Handshake(1, 0, ()).encode()


class OpenDoor:
    """A door on a free port, and what it logs."""

    def __init__(self, stack, status_path=None, silence=20.0):
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.door = Door(
            "127.0.0.1",
            0,
            LOOPBACK,
            silence=silence,
            log=self._said.put,
            status=lambda: b"{}\n",
            status_path=status_path,
        )
        stack.callback(self.door.close)
        self._stack = stack

    def logged(self):
        """The next line."""
        return self._said.get(timeout=10)

    def visit(self, said=b""):
        sock = self._stack.enter_context(socket.create_connection((self.door.host, self.door.port)))
        sock.sendall(said)
        return sock


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def opened(stack):
    return OpenDoor(stack)


@pytest.fixture
def root(stack):
    """A root's connection, as the run has it; and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = stack.enter_context(socket.create_connection(server.getsockname()))
        near = stack.enter_context(server.accept()[0])
    return Link(near, "the root", 5.0), far


def is_sent_away(sock, seconds=10.0):
    sock.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def is_kept(sock):
    return not select.select([sock], [], [], 0)[0]


# ---- roots ----


@pytest.mark.parametrize("said", [b"\n", ROOT[:7]])
def test_a_word_makes_no_root_of_a_visitor_until_the_handshake_is_there(opened, said):
    visitor = opened.visit(said)
    with opened.visit(ROOT) as true:
        found = opened.door.wait_root()
        assert found[0].getpeername() == true.getsockname()
        found[0].close()
    assert is_kept(visitor)
    opened.door.reopen()
    visitor.sendall(ROOT[len(said) :])
    if said != b"\n":
        found = opened.door.wait_root()
        assert found[0].recv(8) == ROOT
        found[0].close()


@pytest.mark.parametrize(("said", "why"), [(b"", "without a word"), (b"SSH-", "said a handshake")])
def test_who_leaves_before_the_handshake_is_no_root(opened, said, why):
    opened.visit(said).close()
    opened.visit(ROOT)
    opened.door.wait_root()[0].close()
    assert why in opened.logged()


def test_who_says_no_handshake_is_sent_away_in_time(stack):
    opened = OpenDoor(stack, silence=0.05)
    assert is_sent_away(opened.visit(b"GET"))
    assert "it said no handshake for 0.05 s" in opened.logged()


def test_of_many_who_wait_the_first_are_sent_away(opened):
    visitors = [opened.visit() for _ in range(70)]
    assert all(is_sent_away(visitor) for visitor in visitors[:6])
    assert all(is_kept(visitor) for visitor in visitors[6:])
    assert "too many others wait" in opened.logged()


# ---- other workers ----


def test_workers_are_let_in_in_order_of_arrival(opened, root):
    opened.door.expect(3)
    with opened.visit() as a, opened.visit() as b, opened.visit() as c:
        opened.door.wait_workers(3, 10, root[0])
        found = opened.door.workers()
        ends = [sock.getpeername() for sock, _ in found]
        assert ends == [sock.getsockname() for sock in (a, b, c)]
        for sock, _ in found:
            sock.close()


def test_a_port_scan_takes_no_workers_place(opened, root):
    opened.door.expect(1)
    opened.visit().close()
    assert "it left without a word" in opened.logged()
    with pytest.raises(LinkError, match="another worker did not connect in time"):
        opened.door.wait_workers(1, 0.05, root[0])
    with opened.visit() as true:
        opened.door.wait_workers(1, 10, root[0])
        [(sock, _)] = opened.door.workers()
        assert sock.getpeername() == true.getsockname()
        sock.close()


def test_who_comes_after_the_expected_ones_is_kept_as_well(opened, root):
    opened.door.expect(1)
    opened.visit()
    opened.door.wait_workers(1, 10, root[0])
    opened.visit()
    opened.door.wait_workers(2, 10, root[0])
    found = opened.door.workers()
    assert len(found) == 2
    for sock, _ in found:
        sock.close()


def test_when_the_workers_are_known_nobody_else_is_let_in(opened, root):
    opened.visit(ROOT)
    root_sock, _ = opened.door.wait_root()
    opened.door.expect(1)
    opened.visit()
    opened.door.wait_workers(1, 10, root[0])
    [(sock, _)] = opened.door.workers()
    assert is_sent_away(opened.visit())
    sock.close()
    root_sock.close()


def test_of_many_who_may_be_workers_those_who_talk_are_sent_away_first(opened, root):
    opened.door.expect(1)
    silent = opened.visit()
    opened.door.wait_workers(1, 10, root[0])
    talkative = [opened.visit(b"GET / HTTP/1.1\r\n\r\n") for _ in range(3)]
    opened.door.wait_workers(4, 10, root[0])
    others = [opened.visit() for _ in range(64)]
    assert is_sent_away(talkative[0])
    for each in others:
        assert is_kept(each)
    assert is_kept(silent)


def test_a_root_that_leaves_while_workers_are_awaited_ends_it(opened, root):
    opened.door.expect(1)
    root[1].close()
    with pytest.raises(LinkError, match="the root closed the connection"):
        opened.door.wait_workers(1, 10, root[0])


def test_a_root_that_talks_on_is_waited_with(opened, root):
    opened.door.expect(1)
    root[1].sendall(b"x")
    opened.visit()
    opened.door.wait_workers(1, 10, root[0])


def test_when_a_run_is_over_those_who_waited_to_be_workers_are_sent_away(opened, root):
    opened.door.expect(1)
    visitor = opened.visit()
    opened.door.wait_workers(1, 10, root[0])
    opened.door.reopen()
    assert is_sent_away(visitor)


def test_a_door_that_cannot_open_leaves_nothing_open(stack, tmp_path, monkeypatch):
    ends = list(os.pipe())
    monkeypatch.setattr(os, "pipe", lambda: (ends.pop(), ends.pop()))  # the next one fails
    reading = ends[0]
    with pytest.raises(IndexError):
        OpenDoor(stack, tmp_path / "s.sock")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    assert not (tmp_path / "s.sock").exists()


def test_a_door_that_closes_sends_all_away(stack, root):
    opened = OpenDoor(stack)
    waits = opened.visit()
    opened.door.expect(1)
    may_be = opened.visit()
    opened.door.wait_workers(1, 10, root[0])
    opened.door.stop()
    assert is_sent_away(waits)
    assert is_sent_away(may_be)


# ---- the status socket ----


def test_the_status_socket_is_for_this_user_alone(stack, tmp_path):
    path = tmp_path / "new" / "s.sock"
    before = os.umask(0)
    try:
        OpenDoor(stack, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_status_folder_that_others_may_write_to_is_refused(stack, tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written by other users"):
        OpenDoor(stack, tmp_path / "s.sock")


def test_another_users_status_folder_is_refused(stack, tmp_path, monkeypatch):
    give_away(monkeypatch, tmp_path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        OpenDoor(stack, tmp_path / "s.sock")


def test_a_status_folder_that_is_anothers_link_is_refused(stack, tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir(0o700)
    (tmp_path / "precious" / "s.sock").touch()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    give_away(monkeypatch, tmp_path / "link")
    with pytest.raises(PermissionError, match="is a link that another user has made"):
        OpenDoor(stack, tmp_path / "link" / "s.sock")
    assert (tmp_path / "precious" / "s.sock").exists()


def test_what_is_no_socket_is_not_removed(stack, tmp_path):
    (tmp_path / "s.sock").write_text("precious")
    with pytest.raises(FileExistsError, match="is no socket of a worker of yours"):
        OpenDoor(stack, tmp_path / "s.sock")
    assert (tmp_path / "s.sock").read_text() == "precious"


def test_another_users_socket_is_not_removed(stack, tmp_path, monkeypatch):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    give_away(monkeypatch, path)
    with pytest.raises(FileExistsError, match="is no socket of a worker of yours"):
        OpenDoor(stack, path)
    assert path.exists()


def test_a_socket_that_a_killed_worker_left_is_replaced_and_removed_in_the_end(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with contextlib.ExitStack() as stack:
        OpenDoor(stack, path)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))
            assert visitor.recv(10) == b"{}\n"
    assert not path.exists()


def test_a_socket_that_another_worker_has_put_in_its_place_stays(tmp_path):
    path = tmp_path / "s.sock"
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        OpenDoor(first, path)
        OpenDoor(second, path)
        first.close()
        assert path.exists()


def test_a_path_that_no_socket_can_have_is_an_error_that_says_so(stack, tmp_path):
    with pytest.raises(OSError, match="longer than the 103 bytes of a socket's path"):
        OpenDoor(stack, tmp_path / ("x" * 104))
