"""Whether Python code of other threads runs during a call."""

import sys
import threading
from collections.abc import Callable


def lets_others_run(call: Callable[[], object]) -> bool:
    """Python itself hands its lock over only after the switch interval, which is longer here than
    any test."""
    ran: list[bool] = []
    gate = threading.Lock()
    gate.acquire()

    def other() -> None:
        with gate:
            ran.append(True)

    thread = threading.Thread(target=other)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        thread.start()  # returns when the other one waits at the gate, without Python's lock
        gate.release()
        call()
        return bool(ran)
    finally:
        sys.setswitchinterval(before)
        thread.join()
