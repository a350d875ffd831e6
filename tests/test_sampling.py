"""Drawing: the same picture from the same words and seed, whatever is drawn beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.config import Config
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.generator import ImageGenerator
from limner.inference.sampling import build_objective, draw
from limner.training.trainer import Trainer

OBJECTIVES = {
    "flow": ["scheduler.objective=flow_matching"],
    "flow, dit": ["scheduler.prediction_type=velocity", "model.architecture=dit"],
    "diffusion": ["scheduler.objective=diffusion"],
    "diffusion, cosine": [
        "scheduler.beta_schedule=squaredcos_cap_v2",
        "scheduler.prediction_type=v_prediction",
        "model.architecture=dit",
    ],
}
PROMPTS = ["a large red square", "", "红苹果", "two blue circles", "a large red square"]
SEEDS = [3, 3, 0, 11, 4]
