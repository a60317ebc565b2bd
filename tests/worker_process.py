"""`airllm worker` as a process of its own, whose memory and descriptors can be measured."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


class Process:
    """A worker on a free port, with these options."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = probe.getsockname()
        command = [sys.executable, "-m", "airllm", "worker", "--json"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.address[1]), "--threads", "1", *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert self.event()["event"] == "listening"

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def wait_for(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names."""
        while (event := self.event())["event"] not in names:
            pass
        return event

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: VmHWM and VmRSS in KiB, Threads."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{name}:")[1].split()[0])

    def peak_bytes(self) -> int:
        return 1024 * self.status("VmHWM")

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        finally:
            self.process.kill()
