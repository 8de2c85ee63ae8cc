"""Measure what fusion and missing modalities cost in time and memory.

Example:
    python scripts/benchmark.py --sweep --output figures.json
"""

import sys

from sgma_hf.commands.benchmark import main


if __name__ == "__main__":
    sys.exit(main())
