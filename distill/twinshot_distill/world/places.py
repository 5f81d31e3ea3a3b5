"""Colours, scenes and what can stand behind the objects; in English and Chinese."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 44),
    "orange": (247, 129, 28),
    "yellow": (247, 206, 30),
    "green": (52, 165, 66),
    "blue": (38, 104, 222),
    "purple": (132, 62, 196),
    "pink": (247, 128, 178),
    "brown": (128, 80, 46),
    "black": (46, 44, 48),
    "white": (240, 240, 242),
}
"""Colour name -> sRGB of the recoloured sprite's average."""

CHINESE_COLORS: dict[str, str] = {
    "red": "红",
    "orange": "橙",
    "yellow": "黄",
    "green": "绿",
    "blue": "蓝",
    "purple": "紫",
    "pink": "粉",
    "brown": "棕",
    "black": "黑",
    "white": "白",
}
"""Colour name -> the Chinese word that 色, "colour", is put behind."""

SCENES: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on a meadow", "on the grass"),
    "beach": ("on a beach", "on the beach", "at the beach"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "on snow", "in a snowy landscape"),
    "night": ("at night", "under the stars", "in the night"),
    "space": ("in space", "in outer space"),
    "sunset": ("at sunset", "in front of a sunset"),
    "underwater": ("under water", "underwater", "under the sea"),
    "city": ("in a city", "in the city", "in front of a city"),
}
"""Scene name -> the English phrases that ask for it; the first is the plainest."""

CHINESE_SCENES: dict[str, tuple[str, ...]] = {
    "meadow": ("草地上", "草坪上"),
    "beach": ("沙滩上", "海滩上"),
    "desert": ("沙漠里", "沙漠中"),
    "snow": ("雪地里", "雪中"),
    "night": ("夜晚", "星空下"),
    "space": ("太空中", "宇宙中"),
    "sunset": ("夕阳下", "日落时"),
    "underwater": ("水下", "海底"),
    "city": ("城市里", "城市中"),
}
"""Scene name -> the Chinese phrases that ask for it; the first is the plainest."""

BACKGROUNDS: tuple[str, ...] = (*COLORS, *SCENES)
"""Everything that can stand behind the objects: ten plain studio colours and nine scenes."""
