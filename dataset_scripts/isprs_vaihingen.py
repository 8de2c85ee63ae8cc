"""Check, convert and push ISPRS Vaihingen, or build it with the datasets library.

Example:
    python dataset_scripts/isprs_vaihingen.py --source /data/Vaihingen --output data/vaihingen --tile_size 512
"""

import sys

from sgma_hf.converters.isprs_vaihingen import IsprsVaihingen, main


__all__ = ["IsprsVaihingen", "main"]

if __name__ == "__main__":
    sys.exit(main())
