"""The settings tree: where values come from, what is refused, and that everything is described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from deployments.settings import Settings


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


def test_the_environment_beats_arguments_and_arguments_beat_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HTTP__PORT", "9100")
    monkeypatch.setenv("WEFT_DATA_DIR", "/from/environment")
    arguments = {
        "data_dir": Path("/from/arguments"),
        "http": {"port": 9200, "max_body_bytes": 2048},
        "graph_state": {"max_group_operations": 3},
    }
    settings = Settings.model_validate(arguments)
    assert settings.data_dir == Path("/from/environment")
    assert (settings.http.port, settings.http.max_body_bytes, settings.http.host) == (9100, 2048, "127.0.0.1")
    assert settings.graph_state.max_group_operations == 3
    assert settings.graph_state.ring_rows == Settings().graph_state.ring_rows


@pytest.mark.parametrize(
    "arguments",
    [{"prot": 1}, {"http": {"prot": 1}}, {"retriever": {"num_replica": 2}}, {"store": {"uri": "sqlite://"}}],
)
def test_an_unknown_key_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Settings.model_validate(arguments)


def test_an_unknown_variable_of_a_known_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HTTP__PROT", "1")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.evil.org"])
def test_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(ValidationError, match="not a loopback address"):
        Settings.model_validate({"http": {"host": host}})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("127.8.8.8", "http://127.8.8.8:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_loopback_hosts_and_their_urls(host: str, url: str) -> None:
    assert Settings.model_validate({"http": {"host": host}}).url == url


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("http", "port", 0),
        ("http", "port", 70_000),
        ("graph_state", "num_cpus", 0),
        ("graph_state", "ring_versions", 0),
        ("ingress", "min_version_timeout_s", -1),
        ("retriever", "pull_rows", 0),
    ],
)
def test_values_out_of_range_are_refused(group: str, name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{group}.{name}"):
        Settings.model_validate({group: {name: value}})


def test_every_field_is_described_in_one_sentence() -> None:
    found = dict(fields(Settings))
    assert "http.port" in found
    for path, field in found.items():
        assert field.description, f"{path} has no description"
        assert field.description.endswith("."), path


def test_every_group_says_what_it_is_about() -> None:
    groups = [f.annotation for f in Settings.model_fields.values()]
    kinds = [g for g in groups if isinstance(g, type) and issubclass(g, BaseModel)]
    assert len(kinds) >= 5
    for kind in kinds:
        assert kind.__doc__, kind
        assert kind.model_config["extra"] == "forbid"


def test_units_are_in_the_names() -> None:
    for path, field in fields(Settings):
        about = (field.description or "").casefold()
        if "how long" in about or "how often" in about:
            assert path.endswith("_s"), path


def test_paths_and_urls_derive_from_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.model_validate({"data_dir": "relative"})
    assert settings.data_dir == tmp_path / "relative"
    assert settings.store_url == f"sqlite:///{tmp_path}/relative/weft.sqlite"
    assert settings.snapshot_dir.parent == settings.encoder_dir.parent == settings.data_dir
    other = Settings.model_validate({"store": {"url": "sqlite:////elsewhere.sqlite"}})
    assert other.store_url == "sqlite:////elsewhere.sqlite"
    assert Settings.model_validate({"data_dir": "~/w"}).data_dir == Path.home().resolve() / "w"
