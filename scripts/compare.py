"""Train and evaluate several arms with several seeds on one data set, resumably, one JSON line per run.

Example:
    python scripts/compare.py --dataset data/mine --output runs/compare.jsonl --preset quick --num_proc 2
"""

import sys

from sgma_hf.commands.compare import main


if __name__ == "__main__":
    sys.exit(main())
