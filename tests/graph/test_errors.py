"""The error tree: its docstring, its codes, its way across process borders."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from graph import errors
from graph.errors import WeftError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, WeftError)]


def documented() -> dict[str, tuple[str | None, int | None]]:
    """Name -> (parent, status if the line gives one), as the module's docstring draws the tree."""
    found: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:\|  )*)(\|- )?([A-Z]\w+(?:, [A-Z]\w+)*)(?:\s+(\d{3}))?(?:\s|$)", line)
        if match is None:
            continue
        bars, branch, names, status = match.groups()
        depth = len(bars) // 3 + bool(branch)
        for name in names.split(", "):
            found[name] = (path[depth - 1] if depth else None, int(status) if status else None)
        path[depth:] = [names.split(", ")[-1]]
    return found


def test_the_docstring_draws_the_tree() -> None:
    drawn = documented()
    assert set(drawn) == {kind.__name__ for kind in KINDS}
    for kind in KINDS:
        parent, status = drawn[kind.__name__]
        assert parent == (None if kind is WeftError else kind.__bases__[0].__name__)
        if status is not None:
            assert kind.status == status
        elif kind is not WeftError:
            assert kind.status == kind.__bases__[0].status, f"{kind.__name__}: say its status in the tree"


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) > 10


def test_only_unavailability_is_retryable() -> None:
    assert all(kind.retryable == issubclass(kind, errors.Unavailable) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param", [None, "item_id"])
def test_pickling_keeps_everything(kind: type[WeftError], param: str | None) -> None:
    copy = pickle.loads(pickle.dumps(kind("no item 'x'", param=param)))
    assert type(copy) is kind
    assert (copy.message, copy.param, str(copy)) == ("no item 'x'", param, "no item 'x'")
