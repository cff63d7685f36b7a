"""What is read from a page: blocks with their reasons, inline code, command lines."""

from tests.docs.pages import Code, codes, command_lines, fences_of, inline_of, words

PAGE = """Run `python -m blockjax.main --config
quickstart` or ``a `b` c``.

<!-- not run: it needs
a TPU -->

```python
first()
```

```console
$ python -m blockjax.evaluate \\
    --workdir 'runs/a b'  # and wait
block 4
$ cd runs && ls
```

- in a list

  ~~~~
  ```
  inner
  ~~~~
"""


def test_blocks_of_a_page():
    found, rest = fences_of("a.md", PAGE)
    assert found == [
        Code("a.md", 8, "python", "first()\n", not_run="it needs a TPU"),
        Code("a.md", 12, "console", found[1].text),
        Code("a.md", 21, "", "```\ninner\n"),
    ]
    assert rest.count("\n") + 1 == len(PAGE.splitlines())
    assert [(code.line, code.text) for code in inline_of("a.md", rest)] == [
        (1, "python -m blockjax.main --config quickstart"),
        (2, "a `b` c"),
    ]


def test_command_lines_of_a_block():
    console = fences_of("a.md", PAGE)[0][1]
    lines = command_lines(console)
    assert [words(line) for line in lines] == [
        ["python", "-m", "blockjax.evaluate", "--workdir", "runs/a b"],
        ["cd", "runs"],
        ["ls"],
    ]


def test_indented_lines_of_a_docstring_are_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    path = tmp_path / "config.py"
    path.write_text(
        '"""A config.\n\n    python -m blockjax.main \\\\\n        --config a\n\nText."""\n'
    )
    (code,) = codes(path)
    assert words(*command_lines(code)) == ["python", "-m", "blockjax.main", "--config", "a"]
