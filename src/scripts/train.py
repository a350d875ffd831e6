"""python src/scripts/train.py --config configs/train_config.yaml [--resume latest] [key=value]"""

import sys

from limner.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
