"""Workers of this process, each served by a thread, for tests that play the root."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from extension import require_cpp

from airllm.backends import load_backend
from airllm.cluster.door import LOOPBACK
from airllm.cluster.report import Report
from airllm.cluster.run import Settings
from airllm.cluster.worker import Worker


class Events(Report):
    """Remembers events, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []
        self.fields: list[dict[str, Any]] = []  # of each event, for machines
        self._news = threading.Condition()

    def event(self, name, text, fields=None, *, fault=False):
        with self._news:
            self.events.append((name, text))
            self.fields.append(dict(fields or {}))
            self._news.notify_all()

    def texts(self, name: str) -> list[str]:
        with self._news:
            return [text for event, text in self.events if event == name]

    def fields_of(self, name: str) -> list[dict[str, Any]]:
        with self._news:
            pairs = zip(self.events, self.fields, strict=True)
            return [fields for (event, _), fields in pairs if event == name]

    def wait_for(self, name: str, count: int = 1, seconds: float = 20.0) -> list[str]:
        """The texts of the events of that name, when there are so many."""
        deadline = time.monotonic() + seconds
        with self._news:
            while sum(event == name for event, _ in self.events) < count:
                left = deadline - time.monotonic()
                assert self._news.wait(left), f"no {name} in {seconds} s: {self.events}"
        return self.texts(name)

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Until every run that began is over."""

        def idle():
            names = [event for event, _ in self.events]
            return names.count("root") <= names.count("run_over") + names.count("run_failed")

        with self._news:
            assert self._news.wait_for(idle, seconds), f"still busy: {self.events[-5:]}"


class RunningWorker:
    def __init__(self, backend: str, settings: Settings) -> None:
        self.report = Events()
        self._worker = Worker(
            "127.0.0.1", 0, settings, backend=load_backend(backend), report=self.report
        )
        self.address = self._worker.host, self._worker.port
        self.thread = threading.Thread(target=self._worker.serve)
        self.thread.start()

    def be_patient(self) -> None:
        """From the next run on no root is too slow, whatever else this machine does."""
        names = ("handshake_timeout", "silence_timeout", "idle_timeout", "min_rate")
        usual = {name: getattr(Settings(), name) for name in names}
        self._worker._settings = replace(self._worker._settings, **usual)

    def stop(self) -> None:
        self._worker.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def workers(n: int, backend: str = "cpp", **settings) -> Iterator[list[RunningWorker]]:
    """n of them, on ports of their own; stopped at the end."""
    if backend == "cpp":
        require_cpp()
    with ExitStack() as stack:
        made = []
        for _ in range(n):
            # Threads of one interpreter that look for bytes without sleeping hold each other up.
            defaults = {"networks": LOOPBACK, "threads": 1, "spin": 0.0}
            worker = RunningWorker(backend, Settings(**defaults | settings))
            stack.callback(worker.stop)
            made.append(worker)
        yield made


def addresses(made: list[RunningWorker]) -> list[tuple[str, int]]:
    return [worker.address for worker in made]
