"""The flags of `main`, which live as long as the process."""

from absl import flags


def forget_flags():
    """Brings the flags of `main` back to their defaults, for the next call."""
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
    for flag in flags.FLAGS.flags_by_module_dict().get("blockjax.main", ()):
        flag.unparse()
