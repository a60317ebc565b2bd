"""Recorded runs of a stock dllama root and its workers, as tests/data/dllama has them.

A file is "DLLAREC1", then records: u8 kind, u8 connection, u16 zero, u32 length, and that many
bytes. Kind 0 opens a connection and says in JSON whose it is: {"run", "worker", "order"}, order 0
the root's and the others those of workers with a lower index. Kinds 1 and 2 are bytes to the worker
and from it.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).parent / "data" / "dllama"
NAMES = sorted(path.stem for path in DATA.glob("*.bin"))
OPEN, TO, FROM = range(3)


@dataclass
class Connection:
    to_worker: bytearray = field(default_factory=bytearray)
    from_worker: bytearray = field(default_factory=bytearray)


Run = dict[tuple[int, int], Connection]  # by worker and order


def read_recording(name: str) -> list[Run]:
    data = (DATA / f"{name}.bin").read_bytes()
    assert data[:8] == b"DLLAREC1"
    runs: dict[int, Run] = {}
    connections: dict[int, Connection] = {}
    at = 8
    while at < len(data):
        kind, number, _, length = struct.unpack_from("<BBHI", data, at)
        payload = data[at + 8 : at + 8 + length]
        at += 8 + length
        if kind == OPEN:
            info = json.loads(payload)
            connections[number] = Connection()
            runs.setdefault(info["run"], {})[info["worker"], info["order"]] = connections[number]
        elif kind == TO:
            connections[number].to_worker += payload
        elif kind == FROM:
            connections[number].from_worker += payload
    return [runs[number] for number in sorted(runs)]
