"""Colour profiles made by hand (ICC.1:2010), and what their numbers are in sRGB, by other means.

Profiles that programs ship are under licences; these are built from published primaries.
"""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = np.array([0.95047, 1.0, 1.08883])
PRIMARIES = {  # name -> (x, y of red, green, blue), white, gamma (None: that of sRGB)
    "sRGB": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, None),
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, None),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 563 / 256),
    "ProPhoto RGB": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, 1.8),
}
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def adaptation(white: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Bradford's: XYZ under one white -> XYZ under another."""
    scale = (_BRADFORD @ to) / (_BRADFORD @ white)
    return np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD


def to_xyz(name: str) -> np.ndarray:
    """Linear RGB -> XYZ under the space's own white, 3 x 3."""
    points, white, _ = PRIMARIES[name]
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
    return columns * np.linalg.solve(columns, white)


def decoded(levels: np.ndarray, gamma: float | None) -> np.ndarray:
    """Numbers of a file, 0 to 1, as linear light."""
    if gamma is not None:
        return levels**gamma
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def in_srgb(name: str, colour: tuple[int, int, int]) -> tuple[int, ...]:
    """A colour of a space in sRGB, clipped to it."""
    _, white, gamma = PRIMARIES[name]
    xyz = adaptation(white, D65) @ to_xyz(name) @ decoded(np.array(colour) / 255, gamma)
    linear = np.clip(np.linalg.solve(to_xyz("sRGB"), xyz), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(int(level) for level in np.round(255 * encoded))


def rgb_profile(name: str) -> bytes:
    """Of a space of three primaries: version 2, with a tone curve and a matrix."""
    _, white, gamma = PRIMARIES[name]
    matrix = adaptation(white, D50) @ to_xyz(name)
    curve = _curve(gamma)
    tags = {
        b"desc": _description(name),
        b"wtpt": _xyz(D50),
        **{key: _xyz(matrix[:, i]) for i, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        b"cprt": b"text\0\0\0\0none\0",
    }
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float | None) -> bytes:
    tags = {b"desc": _description("grey"), b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)}
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def cmyk_profile(ink: tuple[float, float, float]) -> bytes:
    """Of a printer all of whose inks look alike: a full one has this colour (L*, a*, b*), paper is
    white, and between them, and with several inks, it goes linearly, to black with all four."""
    full, corners = np.array(ink), []
    for index in range(16):
        inks = index.bit_count()
        corners.append(full * (1 - (inks - 1) / 3) if inks else np.array([100.0, 0, 0]))
    return _profile(b"prtr", b"CMYK", b"Lab ", _tags_of_table("printer", corners))


def faded_profile(darkest: float) -> bytes:
    """Of RGB pictures whose black is a grey of this L*."""
    corners = [np.array([darkest + (100 - darkest) * i.bit_count() / 3, 0, 0]) for i in range(8)]
    return _profile(b"scnr", b"RGB ", b"Lab ", _tags_of_table("faded", corners))


def _tags_of_table(name: str, corners: list[np.ndarray]) -> dict[bytes, bytes]:
    """L*, a*, b* at the corners of the space, the last channel changing fastest: type mft1."""
    lab = np.array(corners) * (2.55, 1, 1) + (0, 128, 128)
    channels = len(corners).bit_length() - 1
    identity = struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    straight, table = bytes(range(256)), np.round(lab).astype(np.uint8).tobytes()
    lut = b"mft1" + bytes(4) + bytes([channels, 3, 2, 0]) + identity
    lut += straight * channels + table + straight * 3
    return {b"desc": _description(name), b"wtpt": _xyz(D50), b"A2B0": lut, b"A2B1": lut}


def lab_in_srgb(lab: tuple[float, float, float]) -> tuple[int, ...]:
    """CIE L*a*b* (D50) in sRGB."""
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip(np.linalg.solve(to_xyz("sRGB"), adaptation(D50, D65) @ xyz), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(int(level) for level in np.round(255 * encoded))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    body, table, at = b"", b"", 128 + 4 + 12 * len(tags)
    placed: dict[bytes, int] = {}
    for data in dict.fromkeys(tags.values()):
        placed[data] = at + len(body)
        body += data + bytes(-len(data) % 4)
    for key, data in tags.items():
        table += struct.pack(">4sII", key, placed[data], len(data))
    header = struct.pack(
        ">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, kind, space, connection
    )
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(4 + 4 + 4 + 4 + 8)
    header += struct.pack(">I", 1) + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(tags)) + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    levels = decoded(np.arange(1024) / 1023, None)
    table = np.round(65535 * levels).astype(">u2").tobytes()
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + table


def _description(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)
