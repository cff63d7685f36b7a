"""Tables on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MAX_WORD = 40  # longer words may be broken in tables


def render_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    console: Console | None = None,
) -> None:
    """Prints a table; floats get 3 decimals, columns of numbers are aligned to the right.

    What is too wide for a terminal goes on below in further tables, each with the first column; no number is cut.

    Args:
      title: Shown above the table.
      columns: Their headings.
      rows: One value per column; None is shown as "-".
      console: Where to print; standard output if None.
    """
    console = console or Console()
    if not console.is_terminal:
        # rich assumes 80 columns here and would break lines that a file has room for. In a notebook it would write
        # HTML, and beside that text with codes of a terminal, which stay in the file.
        console = Console(
            file=console.file, width=10_000, force_jupyter=False, force_terminal=False
        )
    unbounded = console.options.update(width=10_000)  # else what is measured is cut to the console
    shown = []
    for index in range(len(columns)):
        wider = _table(title, columns, rows, [*shown, index])
        if len(shown) > 1 and console.measure(wider, options=unbounded).minimum > console.width:
            console.print(_table(title, columns, rows, shown))
            title, shown = "", [0]
        shown.append(index)
    console.print(_table(title, columns, rows, shown))


def _table(title, columns, rows, shown):
    table = Table(title=title or None, title_justify="left")
    for index in shown:
        cells = [_cell(row[index]) for row in rows]
        if all(_is_number(row[index]) for row in rows):
            heading = Text(columns[index].replace(" ", "\n"))
            table.add_column(heading, justify="right")
        else:
            words = " ".join([columns[index], *cells]).split()
            table.add_column(Text(columns[index]), min_width=min(_MAX_WORD, max(map(len, words))))
    for row in rows:
        table.add_row(*(Text(_cell(row[index])) for index in shown))
    return table


def _is_number(value: object) -> bool:
    """Also true of numbers that are formatted already, such as "1,234.5"."""
    if isinstance(value, str):
        return value[:1].isdigit() and not value.strip("0123456789,.")
    return isinstance(value, int | float | None)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
