"""All measurements that need a GPU, in one command.

    python benchmarks/on_a_gpu.py

Speed, share of the matrix peak, compile time, and memory of four sizes at 256 and 1,024 tokens
beside the published code (training_speed.py); then the emoji at 128 pixels, trained for half an
hour, with samples in outputs/emoji_gpu/samples.png. Not yet run on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "emoji_gpu.yaml"


def main() -> None:
    speed = [sys.executable, str(HERE / "training_speed.py"), "--device", "cuda"]
    subprocess.run(speed, check=True)

    from limner.config import load_config
    from limner.evaluation.end_of_run import evaluate_run
    from limner.evaluation.summary import sentences_of_run
    from limner.training.trainer import Trainer

    trainer = Trainer(load_config(CONFIG))
    trainer.train()
    results = evaluate_run(trainer.folder, trainer.config, trainer.data, command=" ".join(sys.argv))
    print("\n".join(sentences_of_run(results)))
    print(f"look at {trainer.folder / 'samples.png'} and {trainer.folder / 'report.html'}")


if __name__ == "__main__":
    main()
