"""The mask of one object, kept as the small map that the network gives for its box.

100 masks of a 50-megapixel image take 5 GB as pixels and 300 KB as maps. Run lengths and polygons are computed from the
map without the pixels: the time grows with the width of the box, not with its area.

Shapes: H height, W width of the image; G side of the map with a border of one cell, S its columns at the pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eca_hub.images.rle import decode_mask, encode_runs

_LEVEL = 0.5
"""A pixel belongs to the object where the probability is above this."""


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """Which pixels of an image belong to an object; `numpy.asarray(mask)` gives them."""

    probabilities: np.ndarray
    """float32, square: the map inside the box."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image."""
    height: int
    """Of the image."""
    width: int
    """Of the image."""

    def to_array(self) -> np.ndarray:
        """Return the pixels, bool (H, W)."""
        return decode_mask(self.to_rle())

    def to_rle(self) -> dict[str, Any]:
        """Return COCO's run-length code, `{"size": [H, W], "counts": text}`.

        The map is resized to the box bilinearly, as torchvision does it; pixels whose probability is 0.5 up to rounding
        may differ.
        """
        grid_GG, (left, top, width, height) = self._padded_map_and_box()
        first, end = max(left, 0), min(left + width, self.width)
        size = len(grid_GG)
        source_S = ((np.arange(first, end) - left + 0.5) * size / width - 0.5).clip(0, size - 1)
        index_S = source_S.astype(np.int64)
        share_S = source_S - index_S
        columns_GS = grid_GG[:, index_S] * (1 - share_S) + grid_GG[:, np.minimum(index_S + 1, size - 1)] * share_S
        # Down a column the probability is linear between two cells, and the border is outside: the points where it
        # crosses the level begin and end runs in turn.
        values_SG = columns_GS.T
        is_inside_SG = values_SG > _LEVEL
        column, cell = np.nonzero(is_inside_SG[:, 1:] != is_inside_SG[:, :-1])
        before, after = values_SG[column, cell], values_SG[column, cell + 1]
        y = (cell + (_LEVEL - before) / (after - before) + 0.5) * height / size - 0.5 + top
        starts = np.floor(y[0::2]).astype(np.int64) + 1
        ends = np.ceil(y[1::2]).astype(np.int64)
        offset = (column[0::2] + first) * self.height
        return encode_runs(
            offset + starts.clip(0, self.height), offset + ends.clip(0, self.height), self.height, self.width
        )

    def to_polygons(self) -> list[list[float]]:
        """Return the outlines as COCO writes them, `[[x1, y1, x2, y2, ...], ...]`; holes are filled.

        They follow the map and not its pixels: at an edge both differ by up to a pixel, in large boxes by more.
        """
        grid_GG, (left, top, width, height) = self._padded_map_and_box()
        size = len(grid_GG)
        polygons = []
        for outline_P2 in _outlines(grid_GG):
            x = ((outline_P2[:, 1] + 0.5) * width / size + left).clip(0, self.width)
            y = ((outline_P2[:, 0] + 0.5) * height / size + top).clip(0, self.height)
            polygons.append(np.stack([x, y], axis=1).round(2).ravel().tolist())
        return polygons

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.to_array().astype(bool if dtype is None else dtype, copy=False)

    def _padded_map_and_box(self) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """Return the map with a border of zeros, and left, top, width and height of its pixels, as torchvision does."""
        side = len(self.probabilities)
        x1, y1, x2, y2 = np.asarray(self.box, np.float32)
        half, scale = np.float32(0.5), np.float32((side + 2) / side)
        half_width, half_height = (x2 - x1) * half * scale, (y2 - y1) * half * scale
        center_x, center_y = (x2 + x1) * half, (y2 + y1) * half
        left, top = int(center_x - half_width), int(center_y - half_height)
        right, bottom = int(center_x + half_width), int(center_y + half_height)
        return np.pad(self.probabilities, 1), (left, top, max(right - left + 1, 1), max(bottom - top + 1, 1))


_Edge = tuple[int, int, int]
"""Between two cells of a map: row and column of the first, and 0 if the second is to the right, 1 if it is below."""


def _outlines(grid_GG: np.ndarray) -> list[np.ndarray]:
    """Follow the level through a map whose border is outside (marching squares): rows and columns, a list an outline.

    Each square of four cells is walked around clockwise. A line enters it where the walk leaves the object, and ends
    where the walk enters it again, so that the object is always on the same side.
    """
    is_inside_GG = grid_GG > _LEVEL
    following: dict[_Edge, _Edge] = {}
    counts = is_inside_GG[:-1, :-1].astype(int) + is_inside_GG[:-1, 1:] + is_inside_GG[1:, :-1] + is_inside_GG[1:, 1:]
    for row, column in np.argwhere((counts > 0) & (counts < 4)).tolist():
        corners = [(row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)]
        edges: list[_Edge] = [(row, column, 0), (row, column + 1, 1), (row + 1, column, 0), (row, column, 1)]
        inside = [bool(is_inside_GG[corner]) for corner in corners]
        leaves = [side for side in range(4) if inside[side] and not inside[(side + 1) % 4]]
        enters = [side for side in range(4) if not inside[side] and inside[(side + 1) % 4]]
        # Two opposite corners are inside: they are connected if the middle is.
        step = 1 if len(leaves) == 1 or grid_GG[row : row + 2, column : column + 2].mean() > _LEVEL else -1
        for leave in leaves:
            enter = next(side % 4 for side in range(leave + step, leave + 4 * step, step) if side % 4 in enters)
            following[edges[leave]] = edges[enter]
    outlines = []
    while following:
        edge = next(iter(following))
        points = []
        while edge in following:
            points.append(_crossing(grid_GG, edge))
            edge = following.pop(edge)
        outline_P2 = np.array(points)
        rows, columns = outline_P2.T
        # The outline of a hole runs the other way round.
        if (columns * np.roll(rows, -1) - np.roll(columns, -1) * rows).sum() > 0:
            outlines.append(outline_P2)
    return outlines


def _crossing(grid_GG: np.ndarray, edge: _Edge) -> tuple[float, float]:
    """Return row and column of the level on an edge."""
    row, column, is_down = edge
    before = float(grid_GG[row, column])
    after = float(grid_GG[row + is_down, column + 1 - is_down])
    share = (_LEVEL - before) / (after - before)
    return row + share * is_down, column + share * (1 - is_down)
