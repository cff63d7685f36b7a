"""Marks names in plain sentences of the code as Markdown code."""

import re

# model.width, end_to_end, strategy=blockwise, tfds:NAME, folder:<path>, $TFDS_DATA_DIR, --config.blocks=2, and what has
# marks already.
_NAME = re.compile(
    r"`[^`]*`"
    r"|'[\w:<>]+'"
    r"|(?<![\w-])--[a-z][\w-]*(?:\.\w+)*(?:=[\w.]+)?"
    r"|(?<![\w.$~/-])(?:~/|\$)?[A-Za-z]\w*(?:[.:=](?:<[^>]*>|[\w.]*\w)|/\w+)+"
    r"|(?<![\w.])[A-Za-z]\w*(?:[+,][A-Za-z]\w*)+"
    r"|(?<![\w.$~/-])(?:~/|\$)?[A-Za-z]+(?:_\w+)+"
)


def marked(text: str) -> str:
    """Returns a sentence in which names of fields, flags, files and values are code."""

    def code(found):
        name = found[0].strip("`'")
        return f"`{name}`"

    return _NAME.sub(code, text).replace("|", "\\|")
