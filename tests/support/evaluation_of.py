"""What `limner evaluate` writes, made up: every kind of entry that a reader of it must know."""

from typing import Any


def measured(value: float, low: float, high: float) -> dict[str, Any]:
    how = "Wilson score interval"
    return {
        "value": value,
        "interval": [low, high],
        "interval_by": how,
        "std": None,
        "notes": [],
    }


def evaluation_of(weights_sha256: str, reference: str = "held out") -> dict[str, Any]:
    """What is written of these weights."""
    return {
        "format": 1,
        "created": "2026-11-25T01:00:00Z",
        "command": "limner evaluate outputs/demo",
        "checkpoint": {
            "path": "outputs/demo/checkpoint-6", "step": 6, "images": 24, "weights": "averaged",
            "parameters": 1000, "weights_sha256": weights_sha256,
        },
        "dataset": {"name": "emoji", "description": "emoji", "trained": 296, "held_out": 39},
        "protocol": {
            "prompts": "39 held-out captions, 8 seeds each", "seed": 0,
            "sampling": "unipc, 12 steps", "reference": reference, "guidance_interval": [0.0, 1.0],
        },
        "versions": {"limner": "0.1.0", "torch": "2.13.0"},
        "device": "2 cores",
        "held_out_loss": {
            "held_out": {"0.1": 0.51, "0.9": 0.25}, "trained": {"0.1": 0.5, "0.9": None},
            "count": 39, "gap": 0.01,
        },
        "recall": {
            "held_out": {
                "count": 39, "at_1": measured(0.95, 0.83, 0.99), "at_5": measured(1.0, 0.91, 1.0),
                "range": "335 images of the data set",
            }
        },
        "checker": {
            "trained": {
                "count": 23, "all_right": measured(0.5, 0.3, 0.7), "by_part": {"colour": 0.75},
            }
        },
        "metrics": [
            {
                "name": "kernel distance (EfficientNet-Lite0)", "value": 0.01234,
                "interval": [0.011, 0.0135], "interval_by": "bootstrap over 39 prompts",
                "std": 0.002, "better": "lower", "notes": ["few pictures"], "counts": [312, 39],
                "floor": {"value": 0.002, "counts": [39, 39], "notes": ["by chance"]},
                "network": {"name": "EfficientNet-Lite0", "weights_sha256": "ab" * 32},
                "reference": {"pictures": 39},
            },
            {
                "name": "recall of Kynkäänniemi", "value": None, "interval": None,
                "interval_by": "none", "std": None, "better": "higher", "notes": [],
                "counts": [312, 39], "floor": None, "network": None, "reference": None,
            },
        ],
        "memorisation": {
            "split": "held out", "count": 39, "ratio": 0.9, "space": "root mean square, 16 x 16",
            "verdict": "no sign of copies", "worst": [],
        },
        "pictures": [],
        "refused": [],
        "events": ["Inception is not at hand, so no FID | none"],
    }  # fmt: skip
