"""The one settings tree. Environment variables are WEFT_ plus the path: WEFT_HTTP__PORT, WEFT_DATA_DIR.

This module is the only reader of the environment. What is given in code or in `serve_config.yaml` (`args:`)
comes second to it, defaults last. Unknown keys are refused.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from graph.schema import MAX_ROWS_PER_WRITE

Cpus = Annotated[float, Field(gt=0, le=64)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


_OTHER_VARIABLES = ("WEFT_TEST_", "WEFT_E2E_")  # of the test suite

NOT_LOOPBACK = "{host!r} is not a loopback address: without API keys Weft listens on loopback only"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(_Group):
    """Where the service listens."""

    host: str = Field("127.0.0.1", description="Address to bind; only loopback is allowed without keys.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the HTTP service.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Larger request bodies are refused with 413.")

    @field_validator("host")
    @classmethod
    def _loopback_only(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError(NOT_LOOPBACK.format(host=host))
        return host


class StoreSettings(_Group):
    """The durable store."""

    url: str | None = Field(None, description="SQLAlchemy URL; default: weft.sqlite in the data directory.")


class GraphStateSettings(_Group):
    """The actor that owns the graph."""

    num_cpus: Cpus = Field(0.1, description="CPUs claimed from Ray.")
    max_queued_writes: int = Field(10_000, ge=1, description="Writes waiting beyond this answer 429.")
    max_group_operations: int = Field(
        MAX_ROWS_PER_WRITE,
        ge=1,
        description="Operations of waiting writes that share one transaction at most.",
    )
    ring_versions: int = Field(20_000, ge=1, description="Commits kept in memory for followers.")
    ring_rows: int = Field(500_000, ge=1, description="Rows those commits hold at most.")
    snapshot_every_versions: int = Field(50_000, ge=1, description="Versions between two snapshots.")
    ping_interval_s: Seconds = Field(
        1.0, description="How often the watchdog asks the actor for a sign of life."
    )
    missed_pings: int = Field(3, ge=1, description="Unanswered pings after which the actor is replaced.")


class GraphEncoderSettings(_Group):
    """Structural embeddings."""

    num_replicas: int = Field(1, ge=1, description="Replicas; each holds the whole graph.")
    num_cpus: Cpus = Field(0.3, description="CPUs claimed per replica.")
    max_ongoing_requests: int = Field(256, ge=1, description="Calls in flight per replica.")


class RetrieverSettings(_Group):
    """Candidate search and ranking."""

    num_replicas: int = Field(1, ge=1, description="Replicas; each holds all item vectors.")
    num_cpus: Cpus = Field(0.3, description="CPUs claimed per replica.")
    max_ongoing_requests: int = Field(256, ge=1, description="Calls in flight per replica.")
    item_staleness_s: Seconds = Field(0.25, description="How far item vectors may lag behind the ratings.")
    pull_rows: int = Field(4_000, ge=1, description="Item rows per pull; a pull must stay under 4 MiB.")


class IngressSettings(_Group):
    """The HTTP front."""

    num_replicas: int = Field(1, ge=1, description="Replicas of the HTTP front.")
    num_cpus: Cpus = Field(0.3, description="CPUs claimed per replica.")
    max_ongoing_requests: int = Field(512, ge=1, description="Requests in flight per replica.")
    min_version_timeout_s: Seconds = Field(
        3.0, description="How long a read waits for the version it asks for."
    )
    request_timeout_s: Seconds = Field(
        15.0, description="How long a write may take, a writer's restart included."
    )
    max_batch: int = Field(64, ge=1, description="Calls that share one handle call at most.")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Field(Path(".weft"), description="Where store, snapshots and encoders live.")
    http: HttpSettings = HttpSettings()
    store: StoreSettings = StoreSettings()
    graph_state: GraphStateSettings = GraphStateSettings()
    graph_encoder: GraphEncoderSettings = GraphEncoderSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    ingress: IngressSettings = IngressSettings()

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        # Replicas do not share the launcher's working directory.
        return path.expanduser().resolve()

    @model_validator(mode="after")
    def _no_unknown_variables(self) -> Settings:
        # A misspelt variable would otherwise be a setting that silently does nothing.
        known: set[str] = set()
        for name, field in type(self).model_fields.items():
            known.add(f"WEFT_{name}".upper())
            if isinstance(field.annotation, type) and issubclass(field.annotation, _Group):
                known |= {f"WEFT_{name}__{inner}".upper() for inner in field.annotation.model_fields}
        unknown = sorted(
            key
            for key in os.environ
            if key.startswith("WEFT_") and key not in known and not key.startswith(_OTHER_VARIABLES)
        )
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; docs/settings.md lists them")
        return self

    @property
    def store_url(self) -> str:
        return self.store.url or f"sqlite:///{self.data_dir / 'weft.sqlite'}"

    @property
    def snapshot_dir(self) -> Path:
        return self.data_dir / "snapshots"

    @property
    def encoder_dir(self) -> Path:
        return self.data_dir / "encoders"

    @property
    def url(self) -> str:
        host = f"[{self.http.host}]" if ":" in self.http.host else self.http.host
        return f"http://{host}:{self.http.port}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings
