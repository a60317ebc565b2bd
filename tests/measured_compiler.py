#!/usr/bin/env python3
"""Runs a compiler, and leaves beside each object how much memory that took, in bytes.

python measured_compiler.py g++ -c a.cpp -o a.o      # and a.maxrss
"""

import resource
import subprocess
import sys
from pathlib import Path


def main():
    result = subprocess.run(sys.argv[1:], check=False)
    if result.returncode == 0 and "-c" in sys.argv:
        # The largest of the processes that were waited for, the compiler proper among them.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        object_file = Path(sys.argv[sys.argv.index("-o") + 1])
        object_file.with_suffix(".maxrss").write_text(str(peak * unit), encoding="ascii")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
