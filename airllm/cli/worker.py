"""airllm worker: take part in a distributed-llama cluster."""

import argparse
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airllm.cli import console, options, values
from airllm.util.printable import printable

if TYPE_CHECKING:
    from airllm.cluster.door import Network

DEFAULT_PORT = 9990
_STATUS_BYTES = 1 << 16  # a status has less than 2 KB
_STATUS_SECONDS = 5.0


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "worker",
        run,
        help="compute for a distributed-llama cluster",
        description="Joins a distributed-llama (dllama) cluster in place of `dllama worker`. "
        "The worker waits for a root, receives its slice of the model, computes with it, and "
        "then waits for the next root. The protocol has no passwords: everybody who can connect "
        "from an allowed network can use this machine. docs/pages/cluster.md describes how to "
        "set up a cluster and how to tunnel its connections.",
        examples=[
            "airllm worker                                        for a root on this machine",
            "airllm worker --host 0.0.0.0 --allow 192.168.1.0/24  for a root in the local network",
            "airllm worker --ram 1G                               keep on disk what does not fit",
            "airllm worker --status                               show what the worker does",
        ],
    )
    group = parser.add_argument_group("who may connect")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default: %(default)s, for this machine only)",
    )
    group.add_argument(
        "--port",
        type=port,
        default=DEFAULT_PORT,
        metavar="P",
        help="port to listen on (default: %(default)s)",
    )
    group.add_argument(
        "--allow",
        type=network,
        nargs="+",
        action="extend",
        default=[],
        metavar="NET",
        help="networks of the root and of the other workers, for instance 192.168.1.0/24 or "
        "10.0.0.7 (default: this machine; needed with any --host that is not loopback)",
    )
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--backend",
        choices=["auto", "cpp", "numpy"],
        default="auto",
        help="cpp uses the compiled kernels; numpy is slow and needs no compiler; auto uses cpp "
        "where it works (default: %(default)s)",
    )
    options.add_threads(group, decode=False)
    group.add_argument(
        "--ram",
        type=values.size,
        metavar="R",
        help="memory for this process, for instance 1G or 900M; weights that do not fit are "
        "kept on disk and read for every token (default: AIRLLM_RAM, or the available memory "
        "with all weights in it)",
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="with --ram: keep the weights on disk in DIR between runs; weights are recognised "
        "by their content and not written again",
    )
    group.add_argument(
        "--spin",
        type=values.not_negative,
        default=5000.0,
        metavar="US",
        help="number of microseconds for which the worker looks for data of other nodes before "
        "it sleeps, which makes a sync a little faster and keeps a processor busy; 0 turns this "
        "off (default: %(default).0f)",
    )
    group.add_argument("--once", action="store_true", help="end after the first root's run")
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--handshake-timeout",
        type=values.above_zero,
        default=60.0,
        metavar="S",
        help="seconds within which a root has to send its program (default: %(default).0f)",
    )
    group.add_argument(
        "--silence-timeout",
        type=values.above_zero,
        default=300.0,
        metavar="S",
        help="seconds that may pass without a byte in the middle of weights or of a token "
        "(default: %(default).0f)",
    )
    group.add_argument(
        "--idle-timeout",
        type=values.above_zero,
        default=3600.0,
        metavar="S",
        help="seconds that may pass between two tokens before the worker gives the root up "
        "(default: %(default).0f)",
    )
    group.add_argument(
        "--min-rate",
        type=values.size,
        default=10_000,
        metavar="R",
        help="bytes a second, for instance 10k; a peer that sends less in the middle of weights "
        "or of a token, for longer than the silence timeout, is given up (default: %(default)s)",
    )
    group = parser.add_argument_group("another worker")
    group.add_argument(
        "--status",
        action="store_true",
        help="show what the worker on --port of this machine is doing, and exit",
    )
    options.add_output(parser, json="for each event, or for the status")


def run(args: argparse.Namespace) -> int:
    if args.status:
        return show_status(args.port, as_json=args.json)
    from airllm.backends import load_backend
    from airllm.cluster.door import LOOPBACK, is_allowed
    from airllm.cluster.report import Report, status_path
    from airllm.cluster.run import Settings
    from airllm.cluster.worker import Worker
    from airllm.weights import budget

    networks: tuple[Network, ...] = tuple(args.allow) or LOOPBACK
    ram = args.ram
    if ram is None and os.environ.get(budget.VARIABLE):
        ram = budget.granted_bytes(None)
    if args.cache is not None and ram is None:
        raise options.UsageError(
            "--cache keeps the weights that --ram leaves on disk; give --ram as well"
        )
    if not args.allow and not _is_loopback(args.host, is_allowed, LOOPBACK):
        raise options.UsageError(
            f"--host {args.host} lets other machines connect; name their networks with --allow, "
            "for instance --allow 192.168.1.0/24. The protocol has no passwords: see "
            "docs/pages/cluster.md"
        )
    settings = Settings(
        threads=args.threads or 0,
        ram=ram,
        networks=networks,
        handshake_timeout=args.handshake_timeout,
        silence_timeout=args.silence_timeout,
        idle_timeout=args.idle_timeout,
        min_rate=args.min_rate,
        spin=args.spin * 1e-6,
        cache=args.cache,
    )
    worker = Worker(
        args.host,
        args.port,
        settings,
        backend=load_backend(args.backend, args.threads),
        report=Report(as_json=args.json),
        status_path=status_path(args.port) if args.port else None,
    )
    before = signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    try:
        return 0 if worker.serve(once=args.once) or not args.once else 1
    finally:
        signal.signal(signal.SIGTERM, before)


def show_status(port: int, *, as_json: bool) -> int:
    """Prints the answer of the worker's status socket. Returns 1 if there is no valid answer."""
    from airllm.cluster.report import status_path
    from airllm.util.private import open_own_folder

    path = status_path(port)
    try:
        os.close(open_own_folder(path.parent, create=False))  # otherwise anybody could answer
        status = _read_status(path)
    except FileNotFoundError as error:
        return _no_status(port, path, str(error.strerror))
    except OSError as error:
        return _no_status(port, error.filename or path, error.strerror or str(error))
    except ValueError as error:
        return _no_status(port, path, str(error))
    if as_json:
        console.write_json(status)
    else:
        for name, value in status.items():
            sys.stdout.write(f"{printable(name) + ':':<10} {printable(_words(value))}\n")
    return 0


def _no_status(port: int, where: object, why: str) -> int:
    console.note(f"error: no worker of this user answers for port {port}: {where}: {why}")
    return 1


def _read_status(path: Path) -> dict[str, Any]:
    """ValueError for an answer of more than 64 KiB, or one that is not an object of plain values
    and of objects of plain values. OSError, and TimeoutError after five seconds."""
    deadline = time.monotonic() + _STATUS_SECONDS
    data = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_STATUS_SECONDS)
        sock.connect(str(path))
        while piece := sock.recv(_STATUS_BYTES + 1 - len(data)):
            data += piece
            if len(data) > _STATUS_BYTES:
                raise ValueError(f"it says more than {_STATUS_BYTES:,} bytes, as no worker does")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "it does not come to an end")
            sock.settimeout(left)
    try:
        status = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its answer is not JSON") from None
    if not isinstance(status, dict) or not all(map(_is_plain, status.values())):
        raise ValueError("its answer is not the status of a worker")
    return status


def _is_plain(value: object) -> bool:
    """Whether a value is plain, or an object of plain values."""
    values = value.values() if isinstance(value, dict) else [value]
    return not any(isinstance(item, (dict, list)) for item in values)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


def _is_loopback(host: str, is_allowed: Any, loopback: Any) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise options.UsageError(f"--host {host}: {error.strerror}") from None
    return all(is_allowed(str(entry[4][0]), loopback) for entry in found)


def port(text: str) -> int:
    value = values.count(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{value} is not a port number")
    return value


def network(text: str) -> "Network":
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a network: {error}") from None
