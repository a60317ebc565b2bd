"""python -m airllm"""

import sys

from airllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
