"""docs/troubleshooting.md quotes messages that the code prints."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
# Python's, Keras's and Pillow's own.
FOREIGN = ("cannot import name", "Could not locate class", "Image size (")


def read_texts():
    """Returns all strings in the code, with the parts of f-strings joined."""
    texts = set()
    for folder in ("heads", "van_backbones", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    texts.add("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return "\n".join(texts)


TEXTS = read_texts()


@pytest.mark.parametrize("message", [each for each in MESSAGES if not each.startswith(FOREIGN)])
def test_messages_are_those_of_the_code(message):
    assert message in TEXTS


def test_there_are_messages():
    assert len(MESSAGES) > 9
    assert all(any(each.startswith(start) for each in MESSAGES) for start in FOREIGN)


def test_options_exist():
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert re.search(
            rf'"{option}"', "\n".join(path.read_text() for path in (ROOT / "examples").glob("*.py"))
        )
