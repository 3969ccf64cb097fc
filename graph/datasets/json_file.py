"""One JSON object per file, and the lines its parts stand on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from graph.datasets.ratings import BadValue

_BLANKS = re.compile(r"[ \t\r\n]*")
_TO_VALUE = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_TO_NEXT = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


class NoObject(BadValue):
    """A file that does not hold one JSON object; `line` is where that shows."""

    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.line = line


class JsonFile:
    """A file read whole. Raises OSError when it cannot be read and NoObject for what it holds."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        raw = path.read_bytes()
        try:
            self.text = raw.decode("utf-8-sig")
            found = json.loads(self.text)
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise NoObject("undecodable bytes: not utf-8 text", line) from error
        except json.JSONDecodeError as error:
            raise NoObject(f"not JSON: {error.msg}, column {error.colno}", error.lineno) from error
        except RecursionError as error:
            raise NoObject("not JSON: it is nested too deeply") from error
        except ValueError as error:  # a number of thousands of digits
            raise NoObject(f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise NoObject(f"no object: the file holds a {type(found).__name__}, not one JSON object")
        self.object: dict[str, Any] = found
        self._lines: dict[str, list[int]] = {}

    def line(self, key: str, place: int) -> int:
        """Line of the element at `place` in the array under `key`, both from the parsed object."""
        if key not in self._lines:
            self._lines[key] = self._lines_of(key)
        return self._lines[key][place]

    def _lines_of(self, key: str) -> list[int]:
        """Lines on which the elements of an array begin; the text is known to be valid."""
        decode, text = json.JSONDecoder().raw_decode, self.text
        offsets: list[int] = []
        at = _after(_BLANKS, text, 0) + 1
        at = _after(_BLANKS, text, at)
        while text[at] != "}":
            name, at = decode(text, at)
            at = _after(_TO_VALUE, text, at)
            value, end = decode(text, at)
            if name == key and isinstance(value, list):
                offsets = []  # of equal keys the last one counts
                at = _after(_BLANKS, text, at + 1)
                while text[at] != "]":
                    offsets.append(at)
                    _, at = decode(text, at)
                    at = _after(_TO_NEXT, text, at)
            at = _after(_TO_NEXT, text, end)
        lines, line, done = [], 1, 0
        for offset in offsets:
            line += text.count("\n", done, offset)
            lines.append(line)
            done = offset
        return lines


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
