"""From a clean clone to a changed recommendation, with nothing but what `make run` prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.processes import wait_until
from tests.service import ROOT, launch, pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]

pytestmark = pytest.mark.e2e

START_TIMEOUT_S = 540.0


@pytest.mark.timeout(700)
def test_two_commands_from_a_clean_clone(tmp_path: Path) -> None:
    """`git clone`, `make run`, then the printed commands, by a shell.

    WEFT_E2E_VENV names an environment to use in place of a fresh installation.
    """
    clone = tmp_path / "weft"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    assert "make run" in (clone / "README.md").read_text(encoding="utf-8")

    command = ["make", "run"]
    ready = os.environ.get("WEFT_E2E_VENV")
    if ready:
        command.append(f"VENV={ready}")
        extra = {"PYTHONPATH": str(clone)}  # its editable installation points at another checkout
    else:
        extra = {}
    extra |= {  # as a user has it
        "WEFT_TEXT_EMBEDDER__BACKEND": "sentence-transformers",
        "WEFT_TEXT_EMBEDDER__MODEL": "all-MiniLM-L6-v2",
        "WEFT_LANGUAGE_MODEL__ENABLED": "true",
    }
    service = launch(tmp_path / "data", tmp_path, command, cwd=clone, extra=extra)
    try:

        def welcomed() -> bool:
            assert service.process.poll() is None, "make run ended before the service was ready"
            return "Ctrl-C stops it." in service.log

        wait_until(welcomed, START_TIMEOUT_S, "URL printed by make run")
        printed = service.log
        url = re.search(r"Weft is ready at (http://\S+)", printed)
        assert url is not None
        assert url[1] == service.url
        first, write, second, search, remember, generate = _commands(printed)

        before = json.loads(_shell(first))
        written = json.loads(_shell(write))
        after = json.loads(_shell(second))

        rated = re.search(r'"item_id": "([^"]+)"', write)
        assert rated is not None
        assert rated[1] in {r["item_id"] for r in before["recommendations"]}
        assert rated[1] not in {r["item_id"] for r in after["recommendations"]}
        assert _version(before) < _version(written) <= _version(after)
        assert before["recommendations"] != after["recommendations"]
        assert all(r["title"] and r["because"] for r in after["recommendations"])
        # What is suggested, and the liked films that it is suggested for.
        titles = {r["title"] for r in after["recommendations"]}
        titles |= {reason["title"] for r in after["recommendations"] for reason in r["because"]}
        found = json.loads(_shell(search))
        assert found["results"]
        assert found["text_model"].startswith("all-minilm-l6-v2-")
        assert found["waiting"] == 0
        assert _version(json.loads(_shell(remember))) > _version(after)
        said = json.loads(_shell(generate))
        assert (said["adapter"], said["source"], said["model"]) == (None, "base", "weft-small")
        # The answer uses what was stated and what was rated; somebody else's, asked the same, neither.
        assert "daughter" in said["output"], said["output"]
        assert any(title in said["output"] for title in titles), (titles, said["output"])
        assert {source["kind"] for source in said["context"]["sources"]} == {"memory", "item"}
        assert said["context"]["missing"] == []
        other = json.loads(_shell(generate.replace("ada-lind", "somebody-else")))
        assert other["context"]["sources"] == []
        assert "daughter" not in other["output"]

        service.interrupt()
        # `make` itself dies of the interrupt; what it started ends in order.
        assert service.wait_for_exit(60) in (0, 2, 130, -2)
        service.assert_gone()
        assert "Stopped." in service.log
        assert "Traceback" not in service.log
        assert not _changed_files(clone), "running leaves no untracked files in the clone"
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.family()
        service.sweep()


def _commands(printed: str) -> list[str]:
    """The six indented curl commands; a backslash continues one."""
    joined = printed.replace("\\\n", " ")
    commands = [line.strip() for line in joined.splitlines() if line.startswith("  curl ")]
    assert len(commands) == 6, printed
    return commands


def _shell(command: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("curl ", "curl --silent --show-error --fail ", 1)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _version(answer: dict[str, str]) -> int:
    return int(answer["version"].rpartition(".")[2])


def _changed_files(clone: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(clone), "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    return done.stdout
