"""Measure what fusion and missing modalities cost in time.

Example:
    python scripts/benchmark.py
"""

import sys

from sgma_hf.commands.benchmark import main


if __name__ == "__main__":
    sys.exit(main())
