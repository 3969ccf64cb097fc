"""The one settings tree. Environment variables are WEFT_ plus the path: WEFT_HTTP__PORT, WEFT_DATA_DIR.

This module is the only reader of the environment. What is given in code or in `serve_config.yaml` (`args:`)
comes second to it, defaults last. Unknown keys are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from deployments.cache_address import redis_url
from deployments.cluster_settings import ClusterSettings
from deployments.setting_groups import (
    NOT_LOOPBACK,
    AdapterSettings,
    AuditSettings,
    CacheSettings,
    ContextSettings,
    GraphEncoderSettings,
    GraphStateSettings,
    Group,
    HttpSettings,
    IngressSettings,
    LanguageModelSettings,
    LogSettings,
    MetricsSettings,
    RetrieverSettings,
    StoreSettings,
    TextEmbedderSettings,
    TextIndexerSettings,
    is_loopback,
)
from graph.errors import InvalidInput

_OTHER_VARIABLES = ("WEFT_TEST_", "WEFT_E2E_")  # of the test suite
_OF_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)")
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")


def _is_service_link(key: str) -> bool:
    """Whether Kubernetes set it, for a service whose name begins with weft, and nobody meant a setting."""
    of_port = key.endswith("_PORT") and _ADDRESS_OF_KUBERNETES.match(os.environ[key]) is not None
    return of_port or _OF_KUBERNETES.search(key) is not None


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )
    # Not a field: it is no setting of Weft's, and holds a password. Replicas get it from the launcher.
    _redis_url: str | None = PrivateAttr(None)

    data_dir: Path = Field(Path(".weft"), description="Where store, snapshots and encoders live.")
    auth: Literal["off", "required"] = Field(
        "off", description="Whether requests need an API key; off is for loopback alone."
    )
    auth_max_lag_s: float = Field(
        1.0,
        ge=0.1,
        le=3600,
        description="A revoked key opens nothing after that; a replica that cannot be sure lets nobody in.",
    )
    insecure: bool = Field(False, description="Listen beyond loopback without keys, for everybody.")
    api_key: SecretStr | None = Field(None, description="The key that `weft` commands send to the service.")
    http: HttpSettings = HttpSettings()
    store: StoreSettings = StoreSettings()
    graph_state: GraphStateSettings = GraphStateSettings()
    graph_encoder: GraphEncoderSettings = GraphEncoderSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    text_embedder: TextEmbedderSettings = TextEmbedderSettings()
    text_indexer: TextIndexerSettings = TextIndexerSettings()
    cache: CacheSettings = CacheSettings()
    context: ContextSettings = ContextSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()
    adapters: AdapterSettings = AdapterSettings()
    audit: AuditSettings = AuditSettings()
    ingress: IngressSettings = IngressSettings()
    cluster: ClusterSettings = ClusterSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

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
            if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
                known |= {f"WEFT_{name}__{inner}".upper() for inner in field.annotation.model_fields}
        unknown = sorted(
            key
            for key in os.environ
            if key.startswith("WEFT_")
            and key not in known
            and not key.startswith(_OTHER_VARIABLES)
            and not _is_service_link(key)
        )
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; docs/settings.md lists them")
        return self

    @model_validator(mode="after")
    def _guarded(self) -> Settings:
        if not self.may_listen_on(self.http.host):
            raise ValueError(f"WEFT_HTTP__HOST: {NOT_LOOPBACK.format(host=self.http.host)}")
        return self

    @model_validator(mode="after")
    def _note_redis(self) -> Settings:
        if self.cache.enabled and self.cache.url is None:
            try:
                self._redis_url = redis_url(os.environ)
            except InvalidInput as error:
                raise ValueError(error.message) from None
        return self

    @property
    def store_url(self) -> str:
        """Where the graph is kept; may hold a password."""
        url = self.store.url
        return f"sqlite:///{self.data_dir / 'weft.sqlite'}" if url is None else url.get_secret_value()

    @property
    def snapshot_dir(self) -> Path:
        return self.data_dir / "snapshots"

    @property
    def encoder_dir(self) -> Path:
        return self.data_dir / "encoders"

    @property
    def adapter_dir(self) -> Path:
        """Adapters by digest; folders that begin with a dot are Weft's own."""
        return self.data_dir / "adapters"

    @property
    def upload_dir(self) -> Path:
        """Where the ingress puts what it receives, for the language model to check."""
        return self.adapter_dir / ".uploads"

    @property
    def adapter_inbox(self) -> Path:
        return self.adapters.inbox or self.data_dir / "adapter-inbox"

    @property
    def audit_dir(self) -> Path:
        return self.data_dir / "audit"

    @property
    def cache_file(self) -> Path:
        """Where embeddings are cached when there is no Redis."""
        return self.data_dir / "embeddings.sqlite"

    @property
    def redis_url(self) -> str | None:
        """The Redis that REDIS_HOST and its like name, unless the cache has a URL of its own or is off.

        Holds the password.
        """
        return self._redis_url

    @property
    def cache_url(self) -> str | None:
        """Where embeddings are cached; None: Redis on this machine when it answers, else a file.

        May hold a password.
        """
        return self._redis_url if self.cache.url is None else self.cache.url.get_secret_value()

    @property
    def url(self) -> str:
        """Where commands on this machine reach the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http.host, self.http.host)  # noqa: S104
        return f"http://[{host}]:{self.http.port}" if ":" in host else f"http://{host}:{self.http.port}"

    def may_listen_on(self, host: str) -> bool:
        """Whether the service may take requests there: beyond loopback it needs keys, or to be told so."""
        return self.auth == "required" or self.insecure or is_loopback(host)

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
