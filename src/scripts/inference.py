"""python src/scripts/inference.py --checkpoint outputs/demo --prompt "a red apple" --seed 42"""

import sys

from limner.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
