"""A server with a real model behind a socket: in this process, or as `airllm serve`."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airllm.cli.served_models import served
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.server.one_model import OneModel
from airllm.server.run import Server, listen
from airllm.server.served_model import ServedModel
from airllm.server.settings import LOOPBACK_HOSTS, ServerSettings


class RunningServer:
    """A server on a free port of loopback, in a thread of this process.

    with RunningServer("model.gguf") as server: http.client.HTTPConnection(*server.address)
    """

    def __init__(
        self,
        model: Path | str,
        *,
        settings: dict[str, Any] | None = None,
        scheduling: dict[str, Any] | None = None,
        change: Callable[[ServedModel], ServedModel] = lambda model: model,
        **engine: Any,
    ) -> None:
        """change: what is served in the model's place."""
        given: dict[str, Any] = {"hosts": LOOPBACK_HOSTS, **(settings or {})}
        own = ServerSettings(port=0, **given)
        listener = listen(own)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.url = f"http://{self.address[0]}:{self.address[1]}"

        def opened() -> Any:
            opened = LayerWiseInferenceEngine(model, **engine)
            return change(served(opened, "tiny", **(scheduling or {})))

        self.models = OneModel(opened)
        self.server = Server(self.models, own, listener)
        self._thread = threading.Thread(target=self._run)
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "RunningServer":
        self._thread.start()
        self.models.engine.wait_until_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.error is None


class ServeProcess:
    """`airllm serve` on a free port, with these options."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "airllm", "serve", "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.lines: list[str] = []
        found = None
        while found is None:
            line = self.line()
            assert line, self.lines
            found = re.search(r"served at http://([^:]+):(\d+)", line)
        self.address = found[1], int(found[2])

    def line(self) -> str:
        assert self.process.stderr is not None
        self.lines.append(self.process.stderr.readline())
        return self.lines[-1]

    def signal(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(60)

    def __enter__(self) -> "ServeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
