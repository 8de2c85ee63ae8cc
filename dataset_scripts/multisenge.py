"""Check MultiSenGE on disk, and convert it.

Example:
    python dataset_scripts/multisenge.py --source MultiSenGE --output data/multisenge
"""

import sys

from sgma_hf.converters.series.multisenge import Multisenge, main


__all__ = ["Multisenge", "main"]

if __name__ == "__main__":
    sys.exit(main())
