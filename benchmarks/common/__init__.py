"""What the benchmarks share. The checkout that this file is in is measured, not another install."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
