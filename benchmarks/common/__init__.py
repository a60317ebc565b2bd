"""What the benchmarks share.

They measure the package that is installed, or, where none is, the checkout that they are in.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))
