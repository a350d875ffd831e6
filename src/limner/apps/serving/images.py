"""Images inside of JSON."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from limner.inference.saving import save_image


def encoded(image: Image.Image, format: str) -> str:
    """The file in base64; format as Pillow names it, such as PNG."""
    data = BytesIO()
    save_image(image, data, format)
    return base64.b64encode(data.getvalue()).decode()
