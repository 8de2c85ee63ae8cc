"""Check DELIVER on disk, and convert it.

Example:
    python dataset_scripts/deliver.py --source DELIVER --output data/deliver
"""

import sys

from sgma_hf.converters.deliver import Deliver, main


__all__ = ["Deliver", "main"]

if __name__ == "__main__":
    sys.exit(main())
