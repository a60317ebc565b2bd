"""Shared parts of the benchmarks.

The benchmarks measure the installed package or, if none is installed, their own checkout.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
