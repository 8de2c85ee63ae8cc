"""Check PASTIS, PASTIS-R or PASTIS-HD on disk, and convert it.

Example:
    python dataset_scripts/pastis.py --source PASTIS-R --output data/pastis --fold 1
"""

import sys

from sgma_hf.converters.series.pastis import Pastis, main


__all__ = ["Pastis", "main"]

if __name__ == "__main__":
    sys.exit(main())
