"""Check, convert and push ISPRS Potsdam, or build it with the datasets library.

Example:
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --output data/potsdam --tile_size 512
"""

import sys

from sgma_hf.converters.isprs_potsdam import IsprsPotsdam, main


__all__ = ["IsprsPotsdam", "main"]

if __name__ == "__main__":
    sys.exit(main())
