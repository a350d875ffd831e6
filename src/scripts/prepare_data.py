"""python src/scripts/prepare_data.py --type coco --input coco --output data --num_samples 5000"""

import sys

from limner.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
