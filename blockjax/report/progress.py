"""Progress of a run on the screen: a live bar on a terminal, now and then a line elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Sequence

from absl import logging
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_MAX_WIDTH = 100  # columns
_BAR_WIDTH = 10
_LINE_SECONDS = 10.0
_LINES_PER_RUN = 10


class Progress:
    """Shows step, time, speed and the losses of all blocks.

    On a terminal this is one bar that stays below everything that is printed or logged. In a pipe
    or a notebook it is a plain line every 10 seconds and every 10 % of the run.

    Args:
      total: Steps of the whole run, or of what else is counted.
      start: Steps done before this process started, as after a resume.
      enabled: Whether this process shows anything; only process 0 should.
      console: Where to show it; standard output if None.
      unit: What is counted.
      speed_unit: In which speed is told.
      clock: Returns seconds.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        unit: str = "step",
        speed_unit: str = "images",
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._unit, self._speed_unit = unit, speed_unit
        self._step = start
        self._enabled = enabled
        self._console = console or Console()
        self._clock = clock
        self._began = clock()
        self._first: tuple[int, float] | None = None  # step and time of the first update
        self._eta: float | None = None
        self._losses: list[float] = []
        self._speed: float | None = None
        self._line_time = -math.inf
        self._line_tenth = start * _LINES_PER_RUN // total
        # rich also takes a pipe for a terminal where FORCE_COLOR is set; a bar would flood it.
        is_terminal = self._console.is_interactive and self._console.file.isatty()
        self._live = (
            Live(
                console=self._console,
                get_renderable=self._bar,
                refresh_per_second=4,
                redirect_stderr=sys.stderr.isatty(),
            )
            if enabled and is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        self._began = self._clock()
        if self._live is not None:
            # absl keeps the stream it was born with; by the redirected one its lines appear above
            # the bar. A log file stays as it is.
            handler = logging.get_absl_handler().python_handler
            self._log_stream = handler.stream
            self._live.start()
            if self._log_stream is sys.__stderr__:
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, *exception) -> None:
        if self._live is not None:
            self._live.stop()
            logging.get_absl_handler().python_handler.setStream(self._log_stream)

    def update(self, step: int, losses: Sequence[float], speed: float | None = None) -> None:
        """Shows the state after a step.

        Args:
          step: Number of train steps done in the whole run.
          losses: The loss of every block, block 1 first.
          speed: Of training, in `speed_unit` a second; None if not known yet.
        """
        if not self._enabled:
            return
        now = self._clock()
        self._step, self._losses, self._speed = step, list(losses), speed
        if self._first is None:
            # Speed counts from here, since the first step contains the compilation.
            self._first = (step, now)
        elif step > self._first[0]:
            seconds_per_step = (now - self._first[1]) / (step - self._first[0])
            self._eta = seconds_per_step * (self._total - step)
        if self._live is None:
            self._line_if_due(now)

    def print(self, text: str) -> None:
        """Prints a text above the bar."""
        if not self._enabled:
            return
        if self._live is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._console.file, flush=True)

    def _line_if_due(self, now: float) -> None:
        tenth = self._step * _LINES_PER_RUN // self._total
        if now - self._line_time >= _LINE_SECONDS or tenth > self._line_tenth:
            self._line_time, self._line_tenth = now, tenth
            self.print(f"{self._unit} {self._facts(_MAX_WIDTH - len(self._unit) - 1)}")

    def _bar(self) -> Table:
        line = Table.grid(padding=(0, 1))
        width = min(self._console.width, _MAX_WIDTH) - _BAR_WIDTH - 1
        line.add_row(
            ProgressBar(self._total, self._step, width=_BAR_WIDTH),
            Text(self._facts(width), no_wrap=True, overflow="ellipsis"),
        )
        return line

    def _facts(self, width: int) -> str:
        """Returns everything in one line of at most `width` columns, if that is possible."""
        speed = self._speed
        facts = [
            f"{self._step}/{self._total} {100 * self._step // self._total}%",
            _duration(self._clock() - self._began),
            f"ETA {_duration(self._eta)}",
        ]
        if speed is not None or self._unit == "step":
            number = "-" if speed is None else format(speed, ".0f" if speed >= 100 else ".1f")
            facts.append(f"{number} {self._speed_unit}/s")
        line = "  ".join(facts)
        if not self._losses:
            return line
        ellipsis = "..." if self._console.options.ascii_only else "…"
        return f"{line}  {_losses_text(self._losses, width - len(line) - 2, ellipsis)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hours}:{minutes:02}:{seconds:02}"


def _losses_text(losses: Sequence[float], width: int, ellipsis: str) -> str:
    """Returns `loss 1:0.812 2:0.799`; leaves out blocks before the last one where space ends."""
    if len(losses) == 1:
        return f"loss {_loss(losses[0])}"
    parts = [f"{block}:{_loss(loss)}" for block, loss in enumerate(losses, start=1)]
    text = " ".join(["loss", *parts])
    for shown in range(len(parts) - 2, -1, -1):
        if len(text) <= width:
            break
        text = " ".join(["loss", *parts[:shown], ellipsis, parts[-1]])
    return text


def _loss(loss: float) -> str:
    if math.isnan(loss):  # of a block that does not train in this step
        return "-"
    return f"{loss:.3f}" if 1e-3 <= abs(loss) < 1e3 or loss == 0 else f"{loss:.2g}"
