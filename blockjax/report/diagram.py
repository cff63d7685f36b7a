"""A drawing of a network in blocks: what flows forward, which loss trains what, and what is held meanwhile."""

import dataclasses
import html
from collections.abc import Sequence

import numpy as np

WIDTH = 900
THEMES = {
    "light": {
        "ink": "#1f2328", "muted": "#57606a", "box": "#eef2f6", "edge": "#8c959f", "zone": "#f6f8fa",
        "forward": "#0969da", "gradient": "#cf222e", "held": "#e07b00",
    },
    "dark": {
        "ink": "#e6edf3", "muted": "#9da7b3", "box": "#21262d", "edge": "#6e7681", "zone": "#161b22",
        "forward": "#58a6ff", "gradient": "#ff7b72", "held": "#f0a040",
    },
}  # fmt: skip

_COLOR = {"forward": "forward", "gradient": "gradient", "time": "muted"}  # of arrows
_SHOWN = 4  # columns of blocks
_LEFT, _BLOCK, _GAP, _PAD, _STEM, _INPUT = 8, 124, 34, 9, 66, 62
_LOSS_Y, _HEAD_Y, _BLOCK_Y, _OPTIMIZER_Y = 62, 106, 156, 222  # from the top of a panel
_CELL = 8  # height of a line of the memory's timeline


@dataclasses.dataclass(frozen=True)
class Network:
    """What is drawn of one training.

    Attributes:
      title: in a few words.
      caption: a sentence under it.
      source: of the stream that enters, in a few words.
      layers: of each block.
      width: of a layer.
      stem: parameters of the stem.
      block: parameters of a block's layers.
      head: parameters of a head.
      head_name: what it is called.
      optimizer: its name.
      optimizers: how many there are, each with a state of its own.
      reached: bool [losses, 1 + K], which loss's gradient arrives where: at the stem, and at each of K blocks.
      draws_memory: whether `held` is drawn.
    """

    title: str
    caption: str
    source: str
    layers: int
    width: int
    stem: int
    block: int
    head: int
    head_name: str
    optimizer: str
    optimizers: int
    reached: np.ndarray
    draws_memory: bool = True

    @property
    def blocks(self) -> int:
        """How many blocks there are, K."""
        return self.reached.shape[1] - 1

    @property
    def readers(self) -> list[int]:
        """The block (from 0) behind which each loss stands: every block, or the last one."""
        losses = len(self.reached)
        return list(range(self.blocks)) if losses == self.blocks else [self.blocks - 1]

    def crossing(self, block: int) -> list[int]:
        """Returns the losses (from 0) whose gradient crosses the boundary above `block` (from 0)."""
        rows = zip(self.reached, self.readers, strict=True)
        return [j for j, (row, reader) in enumerate(rows) if reader > block and row[1 + block]]


def held(network: Network) -> list[list[bool]]:
    """Returns for each moment of a step, forward and then back, whether each block's activations are held.

    They are made in the forward pass and held until the gradients that reach the block have passed: at once where none
    crosses a boundary; else on the way back, after the forward pass of all blocks.
    """
    count = network.blocks
    if not any(map(network.crossing, range(count))):
        return [[b == moment for b in range(count)] for moment in range(count)]
    forward = [[b <= moment for b in range(count)] for moment in range(count)]
    return forward + [row for row in forward[-2::-1]]


def draw(networks: Sequence[Network], theme: str) -> str:
    """Draws trainings one under the other.

    Args:
      networks: first to last.
      theme: of `THEMES`.

    Returns:
      An SVG, 900 pixels wide, on a transparent background.
    """
    canvas, top = _Canvas(THEMES[theme]), 8
    top = _legend(canvas, top)
    for network in networks:
        top = _panel(canvas, network, top) + 26
    return canvas.svg(top - 14, "; ".join(f"{n.title}: {n.caption}" for n in networks))


class _Canvas:
    """SVG elements, in the colours of a theme."""

    def __init__(self, colors):
        self.colors, self.parts = colors, []

    def box(self, x, y, width, height, *, fill="box", edge="edge", dashed=False, radius=5):
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'fill="{self.colors.get(fill, fill)}" stroke="{self.colors.get(edge, edge)}"'
            + (' stroke-dasharray="5 4"' if dashed else "")
            + "/>"
        )

    def text(self, x, y, text, *, size=12, color="ink", anchor="middle", bold=False):
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{self.colors[color]}" '
            f'text-anchor="{anchor}"{weight}>{html.escape(text)}</text>'
        )

    def arrow(self, kind, *points, name=""):
        """Draws a line with a head: forward ones are solid, gradients dashed."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = ' stroke-dasharray="5 3"' if kind == "gradient" else ""
        label = f' data-name="{name}"' if name else ""
        self.parts.append(
            f'<path class="{kind}"{label} d="{path}" fill="none" stroke="{self.colors[_COLOR[kind]]}" '
            f'stroke-width="2"{dashes} marker-end="url(#{kind})"/>'
        )

    def line(self, x, y1, y2, color, width=2.5):
        self.parts.append(
            f'<line x1="{x:g}" y1="{y1:g}" x2="{x:g}" y2="{y2:g}" stroke="{self.colors[color]}" '
            f'stroke-width="{width}"/>'
        )

    def svg(self, height, described):
        heads = "".join(
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{self.colors[color]}"/></marker>'
            for kind, color in _COLOR.items()
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" font-family="Helvetica, Arial, \'Liberation Sans\', sans-serif" '
            f'role="img"><title>{html.escape(described)}</title><defs>{heads}</defs>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def _legend(canvas, top):
    y = top + 8
    canvas.arrow("forward", (_LEFT, y), (_LEFT + 34, y))
    canvas.text(_LEFT + 42, y + 4, "activations, forward", anchor="start", color="muted")
    canvas.arrow("gradient", (190, y), (224, y))
    canvas.text(232, y + 4, "gradient of a loss, backward", anchor="start", color="muted")
    canvas.line(424, y - 8, y + 8, "gradient")
    canvas.text(434, y + 4, "no gradient passes (stop_gradient)", anchor="start", color="muted")
    canvas.box(660, y - 5, 26, 10, fill="held", edge="none", radius=2)
    canvas.text(694, y + 4, "activations held in memory", anchor="start", color="muted")
    return top + 32


def _columns(network):
    """Returns (block from 0 or None for those left out, left edge of its box), left to right."""
    count = network.blocks
    shown = [*range(count)] if count <= _SHOWN else [0, 1, None, count - 1]
    x, columns = _LEFT + _INPUT + _GAP + _PAD + _STEM + 24, []
    for block in shown:
        columns.append((block, x))
        x += _BLOCK + 2 * _PAD + _GAP
    return columns


def _panel(canvas, network, top):
    """Draws one training; returns where it ends."""
    columns, readers = _columns(network), network.readers
    canvas.text(_LEFT, top + 16, network.title, size=17, anchor="start", bold=True)
    canvas.text(_LEFT, top + 36, network.caption, size=13, anchor="start", color="muted")
    middle = top + _BLOCK_Y + 22
    stem_x = _LEFT + _INPUT + _GAP + _PAD
    _zones(canvas, network, columns, stem_x, top)

    canvas.box(_LEFT, middle - 24, _INPUT, 48, fill="none")
    for i, word in enumerate(network.source.split("\n")):
        canvas.text(_LEFT + _INPUT / 2, middle - 3 + 15 * i, word, size=11)
    canvas.arrow("forward", (_LEFT + _INPUT, middle), (stem_x - 1, middle))
    canvas.box(stem_x, top + _BLOCK_Y, _STEM, 60)
    canvas.text(stem_x + _STEM / 2, top + _BLOCK_Y + 20, "stem", bold=True, size=13)
    canvas.text(
        stem_x + _STEM / 2, top + _BLOCK_Y + 36, _short(network.stem), size=11, color="muted"
    )
    canvas.text(stem_x + _STEM / 2, top + _BLOCK_Y + 50, "parameters", size=11, color="muted")

    end = stem_x + _STEM
    for number, (block, x) in enumerate(columns):
        canvas.arrow("forward", (end, middle), (x - 1, middle))
        if number == 0:
            if network.reached[:, 0].any():
                canvas.arrow("gradient", (x, middle + 22), (end + 1, middle + 22), name="stem")
        else:
            _boundary(canvas, network, columns[number - 1], (block, x), end, middle, top)
        end = x + _BLOCK
        if block is None:
            canvas.text(x + _BLOCK / 2, middle + 6, "…", size=28, color="muted")
            continue
        _block(canvas, network, block, x, top)
        if block in readers:
            _loss(canvas, network, readers.index(block), block, x, top)
    return _timeline(canvas, network, columns, top + _OPTIMIZER_Y + 44)


def _block(canvas, network, block, x, top):
    y, center = top + _BLOCK_Y, x + _BLOCK / 2
    canvas.box(x, y, _BLOCK, 60)
    canvas.text(center, y + 20, f"block {block + 1}", bold=True, size=13)
    layers = "1 layer" if network.layers == 1 else f"{network.layers} layers"
    canvas.text(center, y + 36, f"{layers}, {network.width} wide", size=11, color="muted")
    canvas.text(center, y + 50, f"{_short(network.block)} parameters", size=11, color="muted")


def _loss(canvas, network, loss, block, x, top):
    left, right, center = x + 24, x + _BLOCK - 24, x + _BLOCK / 2
    head_y, loss_y = top + _HEAD_Y, top + _LOSS_Y
    canvas.box(x, head_y, _BLOCK, 32)
    canvas.text(center, head_y + 14, network.head_name, size=12)
    canvas.text(center, head_y + 27, f"{_short(network.head)} parameters", size=11, color="muted")
    canvas.box(x + 14, loss_y, _BLOCK - 28, 26, fill="none", edge="gradient", radius=13)
    name = f"local loss {loss + 1}" if len(network.reached) > 1 else "the loss"
    canvas.text(center, loss_y + 17, name, bold=True, size=12)
    canvas.arrow("forward", (left, top + _BLOCK_Y), (left, head_y + 33))
    canvas.arrow("forward", (left, head_y), (left, loss_y + 27))
    canvas.arrow("gradient", (right, loss_y + 26), (right, head_y - 1))
    if network.reached[loss, 1 + block]:
        canvas.arrow(
            "gradient",
            (right, head_y + 32),
            (right, top + _BLOCK_Y - 1),
            name=f"{loss + 1}-{block + 1}",
        )


def _boundary(canvas, network, below, above, end, middle, top):
    """Draws what crosses between two columns backwards: the gradients of these losses, or none."""
    x = above[1]
    blocks = [block for block, _ in (below, above) if block is not None]
    boundary = blocks[0] if below[0] is not None else blocks[-1] - 1
    crossing = network.crossing(boundary)
    if not crossing:
        canvas.line((end + x) / 2, top + _LOSS_Y - 6, middle - 12, "gradient")
        canvas.line((end + x) / 2, middle + 12, top + _OPTIMIZER_Y + 28, "gradient")
        return
    names = ",".join(str(network.readers[j] + 1) for j in crossing)
    canvas.arrow(
        "gradient", (x, middle + 22), (end + 1, middle + 22), name=f"{names}>{boundary + 1}"
    )
    if len(network.reached) > 1:
        text = f"loss {names}" if len(crossing) == 1 else "losses"
        canvas.text((end + x) / 2, middle + 36, text, size=11, color="gradient")


def _zones(canvas, network, columns, stem_x, top):
    """Draws a zone around all that trains together, and its optimizers."""
    start, last = stem_x, columns[-1][1] + _BLOCK
    zones = []
    for (block, x), following in zip(columns, [*columns[1:], (None, None)], strict=True):
        end = x + _BLOCK
        known = block if block is not None else (following[0] or 1) - 1
        if following[1] is None or not network.crossing(known):
            zones.append((start, end, block))
            start = following[1]
    for left, right, block in zones:
        if block is None and len(zones) > 1:
            continue
        height = _OPTIMIZER_Y - _LOSS_Y + 43
        canvas.box(
            left - _PAD, top + _LOSS_Y - 10, right - left + 2 * _PAD, height, fill="zone", radius=9
        )
    y, own = top + _OPTIMIZER_Y + 6, network.optimizers == network.blocks
    for block, x in columns if own else [(0, stem_x)]:
        if block is None:
            continue
        left = stem_x if block == 0 else x
        right = x + _BLOCK if own else last
        canvas.box(left, y, right - left, 20, fill="none")
        text = f"its own {network.optimizer}" if own else f"one {network.optimizer} for all"
        canvas.text((left + right) / 2, y + 14, text, size=11)


def _timeline(canvas, network, columns, top):
    """Draws which activations are held from moment to moment, under the blocks; returns where it ends."""
    if not network.draws_memory:
        return top
    moments, count = held(network), network.blocks
    if count > _SHOWN:
        kept = {b for b, _ in columns if b is not None}
        indices = [i for i in range(len(moments)) if i in kept or len(moments) - 1 - i in kept]
        moments = [moments[i] for i in indices]
    height = len(moments) * (_CELL + 2)
    peak = max(map(sum, held(network)))
    canvas.text(_LEFT, top + 9, "Memory over time", size=12, anchor="start")
    said = (
        f"{peak} of {count} blocks at a time" if peak < count else f"all {count} blocks at the peak"
    )
    canvas.text(_LEFT, top + 26, said, size=12, anchor="start", bold=True)
    time_x = columns[0][1] - 22
    canvas.arrow("time", (time_x, top), (time_x, top + height - 2))
    canvas.text(time_x - 6, top + height - 4, "time", size=11, anchor="end", color="muted")
    for i, moment in enumerate(moments):
        for block, x in columns:
            if block is None:
                continue
            fill, edge = ("held", "held") if moment[block] else ("none", "edge")
            y = top + i * (_CELL + 2)
            canvas.box(x, y, _BLOCK, _CELL, fill=fill, edge=edge, radius=2)
    return top + max(height, 44)


def _short(count):
    """Returns a number of parameters in three digits: 1.2 M, 100 k."""
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
