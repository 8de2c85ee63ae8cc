"""Check the 2023 IEEE GRSS Data Fusion Contest on disk, and convert it.

Example:
    python dataset_scripts/dfc2023.py --source DFC23_IEEE-DataPort --split cities --output data/dfc2023
"""

import sys

from sgma_hf.converters.dfc2023 import Dfc2023, main


__all__ = ["Dfc2023", "main"]

if __name__ == "__main__":
    sys.exit(main())
