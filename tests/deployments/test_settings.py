"""The settings tree: where values come from, what is refused, and that everything is described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from deployments.settings import Settings
from models.embedding_cache.redis_address import parse_redis_url


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
    for more in ({"auth": "required"}, {"insecure": True}):
        assert Settings.model_validate({"http": {"host": host}} | more).http.host == host


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


def test_where_kubernetes_says_that_services_are_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service called weft-cache-redis, and what KubeRay makes of one called weft."""
    for name, value in {
        "WEFT_CACHE_REDIS_SERVICE_HOST": "10.0.0.1",
        "WEFT_CACHE_REDIS_SERVICE_PORT": "6379",
        "WEFT_CACHE_REDIS_SERVICE_PORT_REDIS": "6379",
        "WEFT_CACHE_REDIS_PORT": "tcp://10.0.0.1:6379",
        "WEFT_CACHE_REDIS_PORT_6379_TCP": "tcp://10.0.0.1:6379",
        "WEFT_CACHE_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "WEFT_SERVE_SVC_SERVICE_HOST": "10.0.0.2",
    }.items():
        monkeypatch.setenv(name, value)
    assert Settings()
    monkeypatch.setenv("WEFT_HTTP_PORT", "8001")  # a slip all the same
    with pytest.raises(ValueError, match="WEFT_HTTP_PORT"):
        Settings()


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")])
def test_what_listens_everywhere_is_reached_on_loopback(host: str, url: str) -> None:
    assert Settings.model_validate({"auth": "required", "http": {"host": host}}).url == url


def test_the_key_of_commands_is_shown_nowhere() -> None:
    settings = Settings.model_validate({"api_key": "weft_0.secret"})
    assert "secret" not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("http", "port", 0),
        ("http", "port", 70_000),
        ("graph_state", "num_cpus", 0),
        ("graph_state", "ring_versions", 0),
        ("ingress", "min_version_timeout_s", -1),
        ("retriever", "pull_rows", 0),
        ("cache", "ttl_s", 0),
        ("cache", "ttl_s", float("inf")),
        ("cache", "ttl_s", float("nan")),
        ("cache", "memory_bytes", -1),
        ("text_indexer", "batch_texts", 0),
        ("text_embedder", "dimensions", 0),
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


def test_a_store_may_be_in_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://weft:hush@db:5432/weft?sslmode=require"
    monkeypatch.setenv("WEFT_STORE__URL", url)
    settings = Settings()
    assert settings.store_url == cloudpickle.loads(cloudpickle.dumps(settings)).store_url == url
    assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json()
    monkeypatch.setenv("WEFT_STORE__URL", "")  # as docker compose passes what is not set
    assert Settings().store_url.startswith("sqlite:///")


@pytest.mark.parametrize(
    "url", ["mysql://u:hush@h/d", "postgresql+asyncpg://u:hush@h/d", "u:hush@h", "/hush"]
)
def test_a_url_that_names_no_store_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("WEFT_STORE__URL", url)
    with pytest.raises(ValidationError, match=r"(?s)store\.url.*postgresql://") as raised:
        Settings()
    assert "hush" not in str(raised.value)


# ------------------------------------------------------------------------------- where the embedding cache is

REDIS = ("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of Redis."""
    for name in (*REDIS, "WEFT_CACHE__URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_variables_the_cache_has_no_address(variables: pytest.MonkeyPatch) -> None:
    for name in REDIS:
        variables.setenv(name, "")  # as docker compose passes what is not set
    assert Settings().redis_url is None
    assert Settings().cache_url is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"REDIS_HOST": "cache"}, "redis://cache:6379"),
        ({"REDIS_PORT": "7000"}, "redis://localhost:7000"),
        ({"REDIS_HOST": "::1", "REDIS_PORT": "7000"}, "redis://[::1]:7000"),
        ({"REDIS_HOST": "[::1]"}, "redis://[::1]:6379"),
        ({"REDIS_PASSWORD": "word"}, "redis://:word@localhost:6379"),
    ],
)
def test_the_variables_of_redis_make_its_url(
    variables: pytest.MonkeyPatch, given: dict[str, str], url: str
) -> None:
    for name, value in given.items():
        variables.setenv(name, value)
    assert Settings().cache_url == Settings().redis_url == url


@pytest.mark.parametrize(
    "password", ["p@ss/w:rd", "50% off?", "a#b&c=d", "[x]", "\u00e9t\u00e9 ", "+plus%20"]
)
def test_any_password_survives_the_url(variables: pytest.MonkeyPatch, password: str) -> None:
    variables.setenv("REDIS_HOST", "cache")
    variables.setenv("REDIS_PASSWORD", password)
    settings = Settings()
    assert settings.cache_url is not None
    address = parse_redis_url(settings.cache_url)
    assert (address.host, address.port, address.password) == ("cache", 6379, password)
    assert password not in repr(settings) + str(settings) + settings.model_dump_json()


def test_an_explicit_url_goes_before_the_variables_of_redis(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("REDIS_HOST", "elsewhere")
    variables.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")  # not even looked at
    variables.setenv("WEFT_CACHE__URL", "sqlite:///explicit")
    assert Settings().cache_url == "sqlite:///explicit"
    assert Settings().redis_url is None
    variables.delenv("WEFT_CACHE__URL")
    in_code = Settings.model_validate({"cache": {"url": "memory://"}})
    assert in_code.cache_url == "memory://"
    assert Settings.model_validate({"cache": {"enabled": False}}).cache_url is None


def test_an_empty_url_is_none(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("WEFT_CACHE__URL", "")
    variables.setenv("REDIS_HOST", "cache")
    assert Settings().cache_url == "redis://cache:6379"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("REDIS_PORT", "tcp://10.0.0.1:6379", "REDIS_PORT is 'tcp://10.0.0.1:6379'"),
        ("REDIS_PORT", "0", "from 1 to 65535"),
        ("REDIS_PORT", "70000", "from 1 to 65535"),
        ("REDIS_HOST", "redis://:hidden@cache", "WEFT_CACHE__URL"),
    ],
)
def test_a_host_or_port_that_is_none_is_refused(
    variables: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    variables.setenv(name, value)
    with pytest.raises(ValidationError, match=said) as raised:
        Settings()
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hidden@cache:port",
        "redis://:hidden@cache/zero",
        "redis://:hidden@cache?hidden=1&unknown=2",
        "http://:hidden@cache",
        ":hidden@cache",
        "sqlite://",
    ],
)
def test_a_url_that_names_no_cache_is_refused_and_not_repeated(
    variables: pytest.MonkeyPatch, url: str
) -> None:
    variables.setenv("WEFT_CACHE__URL", url)
    with pytest.raises(ValidationError, match=r"cache\.url") as raised:
        Settings()
    assert ":hidden" not in str(raised.value)


def test_replicas_get_the_launchers_redis(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("REDIS_HOST", "cache")
    sent = cloudpickle.dumps(Settings())
    variables.setenv("REDIS_HOST", "elsewhere")
    assert cloudpickle.loads(sent).cache_url == "redis://cache:6379"


# --------------------------------------------------------------------------------------------- the text model


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"backend": "openai"}, "needs a url"),
        ({"url": "http://127.0.0.1:8080/v1"}, "asks no endpoint"),
        ({"model": "  "}, "no name"),
        ({"model": ""}, "at least 1 character"),
        ({"backend": "word2vec"}, "sentence-transformers"),
    ],
)
def test_a_text_model_that_contradicts_itself_is_refused(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"text_embedder": group})


@pytest.mark.parametrize(("given", "expected"), [("64,128", (64, 128)), ("64", (64,)), ("", ())])
def test_lengths_are_listed_with_commas(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: tuple[int, ...]
) -> None:
    monkeypatch.setenv("WEFT_TEXT_EMBEDDER__MATRYOSHKA_DIMENSIONS", given)
    assert Settings().text_embedder.matryoshka_dimensions == expected
