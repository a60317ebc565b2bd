"""A worker: waits for roots and serves them, one after the other.

worker = Worker("127.0.0.1", 9990)
worker.serve()                # until worker.stop(), from a signal handler or another thread
"""

import contextlib
import ctypes
import gc
import logging
import time
from pathlib import Path

from airllm.backends import Backend, load_backend
from airllm.cluster.door import Door, Visitor
from airllm.cluster.link import LinkError
from airllm.cluster.report import Report
from airllm.cluster.run import RefusedError, Run, Settings
from airllm.cluster.wire import ProtocolError

DEFAULT_PORT = 9990

_log = logging.getLogger("airllm")


class Worker:
    """Listens from construction on. host, port: of this machine; port 0: any free port."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        settings: Settings | None = None,
        *,
        backend: Backend | None = None,
        report: Report | None = None,
        status_path: Path | None = None,
    ) -> None:
        """OSError if the address cannot be bound; ImportError as load_backend."""
        self._settings = settings or Settings()
        self._backend = backend or load_backend(None, self._settings.threads or None)
        self.report = report or Report()
        self._door = Door(
            host,
            port,
            self._settings.networks,
            silence=self._settings.handshake_timeout,
            log=lambda text: self.report.event("turned_away", text),
            status=self.report.status,
            status_path=status_path,
        )
        self.host, self.port = self._door.host, self._door.port

    def serve(self, *, once: bool = False) -> bool:
        """Serves roots until stop() is called; once: until the first run is over. False if the last
        run failed."""
        where = f"{self.host}:{self.port}"
        self.report.event(
            "listening",
            f"listening on {where}, backend {self._backend.name}",
            {"host": self.host, "port": self.port, "backend": self._backend.name},
        )
        good = True
        try:
            while True:
                self.report.update(state="listening", address=where)
                visitor = self._door.wait_root()
                if visitor is None:
                    return good
                good = self._run(visitor)
                if once:
                    return good
        finally:
            self.report.update(state="stopped")
            self.report.event("stopped", "stopped")
            self._door.close()

    def stop(self) -> None:
        """Makes serve() return within a second. For a signal handler or another thread."""
        self._door.stop()

    def _run(self, visitor: Visitor) -> bool:
        """Whether the run ended with the root's stop packet, or ours."""
        run = Run(self._backend, self._settings, self._door, self.report)
        self._door.on_stop = run.stop
        self.report.update(runs=self.report.state["runs"] + 1)
        began = time.monotonic()
        fault = self._fault_of(run, visitor)
        self._door.on_stop = _nothing
        del run
        give_memory_back()
        seconds = round(time.monotonic() - began, 3)
        if fault is None or self._door.stopped:
            self.report.event("run_over", f"the run is over, {seconds:.1f} s", {"seconds": seconds})
            return True
        fields = {"reason": fault, "seconds": seconds}
        self.report.event("run_failed", f"the run ended: {fault}", fields, fault=True)
        return False

    def _fault_of(self, run: Run, visitor: Visitor) -> str | None:
        try:
            run.serve(visitor)
        except (LinkError, ProtocolError, RefusedError) as error:
            return str(error)
        except MemoryError as error:
            return f"out of memory: {error}"
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            _log.exception("this should not have happened; please report it")
            return f"{type(error).__name__}: {error}"
        return None


def give_memory_back() -> None:
    """Returns the freed memory of a run to the system. The allocator would keep it, and take it
    from the budget of the next run."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _nothing() -> None:
    pass
