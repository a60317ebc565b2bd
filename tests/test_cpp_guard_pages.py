"""No operation touches a byte before or after its arrays, on any ISA.

The arrays lie between pages that nobody may touch, their last or first byte beside one. A touch
ends the process, whose last line names the call.
"""

from pathlib import Path

import pytest
from extension import EVERY_ISA, require_cpp
from subprocess_python import run_python

HERE = Path(__file__).parent
GROUPS = ["elementwise", "conversions", "products", "packed_products", "attention", "executor"]
ENDS = pytest.mark.parametrize("at_end", [True, False], ids=["after", "before"])


def run_guarded(code):
    require_cpp()
    return run_python(f"import guarded_calls\n{code}", path=[HERE], timeout=300)


@ENDS
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_nothing_beside_an_array_is_touched(isa, group, at_end):
    done = run_guarded(f"guarded_calls.main({isa!r}, {group!r}, {at_end})")
    assert done.stdout.splitlines()[-1] == "done", f"{done.returncode}: {done.stderr[-2000:]}"
    assert done.returncode == 0


@ENDS
def test_a_touch_beside_an_array_ends_the_process(at_end):
    done = run_guarded(f"guarded_calls.touch_beside({at_end})")
    assert done.stdout == "touching\n"
    assert done.returncode < 0
