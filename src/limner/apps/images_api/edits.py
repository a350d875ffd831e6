"""`POST /v1/images/edits`: a form with a picture, perhaps with a mask, and what is to be drawn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from limner.apps.images_api.errors import ApiError
from limner.apps.images_api.limits import BODY_WITHIN, MOST_FORM_BYTES
from limner.apps.images_api.request import ImagesRequest, Word
from limner.config.types import Share
from limner.errors import LimnerError
from limner.inference.masks import read_mask
from limner.inference.variations import fitted

MOST_FIELDS = 32
FILES = {"image": "image", "image[]": "image", "mask": "mask"}
"""Names of files in the form, as the official client sends them, and what they are."""
NOT_TEXT = ("stream", "partial_images", "output_compression")
"""Fields whose few possible values are no text; the text of a form says them as JSON does."""


class EditRequest(ImagesRequest):
    """The fields of the form besides the files."""

    strength: Share | None = None
    """How far to change the picture, as in `limner generate`; by default all that the mask
    lets, or 0.6 without one."""
    input_fidelity: Word | None = None

    def variation(self, files: dict[str, bytes]) -> dict[str, Any]:
        """Of the keyword arguments of `ImageGenerator.generate_batch` those that were given."""
        given = {"init_image": files["image"], "mask": files.get("mask"), "strength": self.strength}
        return {name: value for name, value in given.items() if value is not None}


async def read_form(request: Request) -> tuple[EditRequest, dict[str, bytes]]:
    """The fields, and the picture and mask by these names. Raises ApiError, or ClientDisconnect."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "the content type must be multipart/form-data", code="invalid_form")
    parser = MultiPartParser(
        request.headers, _limited(request), max_files=len(FILES), max_fields=MOST_FIELDS
    )
    try:
        async with asyncio.timeout(BODY_WITHIN):
            form = await parser.parse()
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="timeout") from None
    except (MultiPartException, ValueError) as error:
        said = getattr(error, "message", None) or str(error)
        raise ApiError(400, f"the body is not a valid form: {said}", code="invalid_form") from None
    values: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if FILES.get(name) is None or FILES[name] in files:
                    raise _one_picture(name)
                files[FILES[name]] = await value.read()
            elif name in FILES:
                raise _one_picture(name)
            else:
                values[name] = _read(value) if name in NOT_TEXT else value
    finally:
        await form.close()
    if "image" not in files:
        raise ApiError(
            400,
            "Missing required parameter: 'image'.",
            param="image",
            code="missing_required_parameter",
        )
    return EditRequest.of(values), files


def check_pictures(files: dict[str, bytes], height: int, width: int) -> None:
    """Raises ApiError for a picture or mask that cannot be used.

    Args:
        height, width: of what is to be drawn.
    """
    name = "image"
    try:
        pixels = fitted(files["image"], height, width)
        if "mask" in files:
            name = "mask"
            read_mask(files["mask"], files["image"], pixels)
    except LimnerError as error:
        raise ApiError(400, str(error), param=name, code="invalid_image") from None


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    length = 0
    async for piece in request.stream():
        length += len(piece)
        if length > MOST_FORM_BYTES:
            raise ApiError(
                413, f"the body has more than {MOST_FORM_BYTES:,} bytes", code="too_large"
            )
        yield piece


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _one_picture(name: str) -> ApiError:
    return ApiError(
        400,
        "the form may have one file 'image' and one file 'mask', and no other files",
        param=name[:100],
        code="invalid_form",
    )
