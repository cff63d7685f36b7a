"""Reading the argument string of a config file."""


def parse_argument(argument: str | None, **defaults):
    """Reads "name=value,name=value" into a dict, each value of the type of its default.

    Args:
      argument: what stands behind the colon in `--config file.py:...`.
      **defaults: the names that may be given, and their values where they are not.

    Raises:
      ValueError: an unknown name, or a value that cannot be read; says what would fit.
    """
    values = dict(defaults)
    for part in (argument or "").split(","):
        if not part:
            continue
        name, equals, text = part.partition("=")
        if name not in defaults or not equals:
            known = ", ".join(f"{key}={value}" for key, value in defaults.items())
            raise ValueError(
                f"config argument {part!r} is unknown; arguments and their defaults: {known}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}={text!r} is not a number of type {kind.__name__}"
            ) from error
    return values
