"""The groups of the settings tree, one class per part of the service."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from deployments.cache_address import check_cache_url
from deployments.gpu_settings import Gpus, check_device
from graph.errors import InvalidInput
from graph.schema import MAX_ROWS_PER_WRITE
from graph.store_backends import backend_of
from models.text_encoder.opening import TextModelSpec

Cpus = Annotated[float, Field(gt=0, le=64)]
Seconds = Annotated[float, Field(gt=0, le=3600)]

_MAX_TTL_S = 100 * 365 * 24 * 3600.0

NOT_LOOPBACK = (
    "{host!r} is not a loopback address: without API keys Weft listens on loopback only. Make a key with "
    "`weft keys create` and set WEFT_AUTH=required; WEFT_INSECURE=true lets everybody in who reaches it"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(value: Any) -> Any:
    """`64,128` as a list."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Group(BaseModel):
    # What was given may be a secret, and a message would repeat it.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class HttpSettings(Group):
    """Where the service listens."""

    host: str = Field("127.0.0.1", description="Address to bind; without keys only loopback, see WEFT_AUTH.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the HTTP service.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Larger request bodies are refused with 413.")


class StoreSettings(Group):
    """The durable store."""

    url: SecretStr | None = Field(
        None,
        description="sqlite:////PATH/FILE or postgresql://USER:PASSWORD@HOST/DATABASE, as SQLAlchemy writes "
        "them; default: weft.sqlite in the data directory. More than one Ray node needs PostgreSQL.",
    )

    @field_validator("url")
    @classmethod
    def _of_a_store(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        try:
            backend_of(url.get_secret_value())
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return url


class GraphStateSettings(Group):
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
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Custom resources of Ray's that the actor claims, which choose the nodes it may run on, "
        'as in {"graph_state": 1}.',
    )
    ping_interval_s: Seconds = Field(
        1.0, description="How often the watchdog asks the actor for a sign of life."
    )
    missed_pings: int = Field(3, ge=1, description="Unanswered pings after which the actor is replaced.")


class GraphEncoderSettings(Group):
    """Structural embeddings."""

    device: str = Field(
        "auto",
        description="auto, cpu or cuda: where a whole graph is added up, at start and for a new encoder. "
        "Ratings are followed on the CPU.",
    )
    num_replicas: int = Field(1, ge=1, description="Replicas; each holds the whole graph.")
    num_cpus: Cpus = Field(0.3, description="CPUs claimed per replica.")
    num_gpus: Gpus = Field(0.0, description="GPUs claimed per replica, or a part of one; 0: the CPU.")
    max_ongoing_requests: int = Field(256, ge=1, description="Calls in flight per replica.")

    @model_validator(mode="after")
    def _one_device(self) -> GraphEncoderSettings:
        check_device(self.device, self.num_gpus)
        return self


class RetrieverSettings(Group):
    """Candidate search and ranking."""

    num_replicas: int = Field(1, ge=1, description="Replicas; each holds all item vectors.")
    num_cpus: Cpus = Field(0.3, description="CPUs claimed per replica.")
    max_ongoing_requests: int = Field(256, ge=1, description="Calls in flight per replica.")
    item_staleness_s: Seconds = Field(0.25, description="How far item vectors may lag behind the ratings.")
    pull_rows: int = Field(4_000, ge=1, description="Item rows per pull; a pull must stay under 4 MiB.")


class TextEmbedderSettings(Group):
    """The text model and what runs it."""

    backend: Literal["sentence-transformers", "openai", "hashing"] = Field(
        "sentence-transformers",
        description="What runs the model: this machine, an OpenAI-compatible endpoint, or hashed words.",
    )
    model: str = Field(
        "all-MiniLM-L6-v2",
        min_length=1,
        description="Name or path of the text model; the default comes with the installation.",
    )
    url: str = Field("", description="Base of the endpoint, such as http://127.0.0.1:8080/v1 (openai).")
    api_key: SecretStr | None = Field(None, description="Key for the endpoint (openai).")
    allow_download: bool = Field(False, description="Fetch a model that is not here from the model hub.")
    device: str = Field("auto", description="auto, cpu or cuda; auto falls back to the CPU.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the computation; auto: bfloat16 where the hardware has it. See docs/cache.md."
    )
    prompt: str = Field("", description="Stands before every text of an item or a memory.")
    query_prompt: str | None = Field(
        None, description="Stands before a search query; default: the same as before texts."
    )
    dimensions: int | None = Field(None, ge=1, description="Shorten vectors (Matryoshka models only).")
    matryoshka_dimensions: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_listed)] = Field(
        (),
        description="Lengths a request may ask for, as in 64,128; empty: the model is not trained for that.",
    )
    max_tokens: int | None = Field(None, ge=1, description="A window smaller than the model's own.")
    num_threads: int | None = Field(
        None, ge=1, le=256, description="Threads of the model; default: the machine's cores, at most 4."
    )
    timeout_s: Seconds = Field(30.0, description="How long one request to the endpoint may take.")
    num_replicas: int = Field(1, ge=1, description="Replicas; each holds the model.")
    num_cpus: Cpus = Field(0.4, description="CPUs claimed per replica.")
    num_gpus: Gpus = Field(0.0, description="GPUs claimed per replica, or a part of one; 0: the CPU.")
    max_ongoing_requests: int = Field(256, ge=1, description="Calls in flight per replica.")
    max_waiting_texts: int = Field(20_000, ge=1, description="Texts waiting for the model beyond answer 429.")
    write_wait_s: float = Field(
        0.25,
        ge=0,
        le=10,
        description="How long a write of items waits for their vectors; later ones follow as a change.",
    )
    write_wait_items: int = Field(
        32, ge=0, description="Writes of more items than this do not wait for vectors."
    )

    @model_validator(mode="after")
    def _one_model(self) -> TextEmbedderSettings:
        # Here, and not where the model is opened: a replica that cannot start says so to nobody.
        try:
            TextModelSpec(model=self.model, backend=self.backend, url=self.url)
        except InvalidInput as error:
            raise ValueError(error.message) from None
        check_device(self.device, self.num_gpus)
        return self


class CacheSettings(Group):
    """The cache of text embeddings."""

    enabled: bool = Field(True, description="False: every text is embedded anew.")
    url: SecretStr | None = Field(
        None,
        description=(
            "redis://, rediss://, unix://, redis+cluster://, sqlite:///PATH, memory:// or none://; default: "
            "Redis at REDIS_HOST, REDIS_PORT, REDIS_PASSWORD (localhost:6379) when it answers, else a file."
        ),
    )
    memory_bytes: int = Field(
        64 << 20, ge=0, description="Size of the in-process tier of each replica; 0: none."
    )
    file_max_bytes: int = Field(
        1 << 30, ge=1 << 20, description="Size of the file that caches without Redis; the oldest entries go."
    )
    ttl_s: float = Field(
        7 * 24 * 3600.0, gt=0, le=_MAX_TTL_S, description="How long an entry is kept after it was written."
    )
    timeout_s: float = Field(0.25, gt=0, le=30, description="Beyond it Redis counts as not answering.")

    @field_validator("url")
    @classmethod
    def _readable(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or not url.get_secret_value():
            return None
        try:
            check_cache_url(url.get_secret_value())
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return url


class TextIndexerSettings(Group):
    """Gives items and memories their text vectors, in the background."""

    num_cpus: Cpus = Field(0.1, description="CPUs claimed.")
    batch_texts: int = Field(256, ge=1, le=MAX_ROWS_PER_WRITE, description="Texts per call and per write.")
    retry_s: Seconds = Field(1.0, description="Pause after a failure; doubles up to 10 s.")


class ContextSettings(Group):
    """What of a user's own graph goes into a prompt."""

    enabled: bool = Field(
        True, description="Whether generation for a named user uses context unless told otherwise."
    )
    max_tokens: int = Field(384, ge=1, le=32_768, description="Tokens of context in a prompt, by default.")
    max_lines: int = Field(64, ge=1, le=1_000, description="Lines considered before the tokens are counted.")
    suggestions: int = Field(5, ge=0, le=50, description="Recommendations among the lines.")
    timeout_s: Seconds = Field(
        1.0, description="How long an answer waits for the query's embedding and for recommendations each."
    )
    explained_items: int = Field(
        3, ge=1, le=20, description="Recommendations that `explain=true` gives a sentence."
    )
    explanation_tokens: int = Field(64, ge=1, le=1_024, description="Tokens of such a sentence at most.")


class LanguageModelSettings(Group):
    """The language model and what runs it."""

    enabled: bool = Field(True, description="False: no language model; generation answers 503.")
    backend: Literal["local", "openai"] = Field(
        "local", description="What runs the model: this machine, or an OpenAI-compatible server."
    )
    model: str = Field(
        "",
        description=(
            "Name or path of a causal language model (Hugging Face layout), or its name at the endpoint; "
            "empty: the small one that comes with Weft, for demonstration."
        ),
    )
    url: str = Field("", description="Base of the endpoint, such as http://127.0.0.1:8080/v1 (openai).")
    api_key: SecretStr | None = Field(None, description="Key for the endpoint (openai).")
    adapter_names: str = Field(
        "{digest}",
        pattern=r"\{digest\}",
        description="What the endpoint calls an adapter (openai); Ray Serve LLM: model-id:{digest}.",
    )
    allow_download: bool = Field(False, description="Fetch a model that is not here from the model hub.")
    device: str = Field("auto", description="auto, cpu or cuda; auto falls back to the CPU.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the weights; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="int8: 8-bit weights in linear layers, for CPUs with VNNI (docs/performance.md).",
    )
    num_threads: int | None = Field(
        None, ge=1, le=256, description="Threads of the model; default: the machine's cores, at most 4."
    )
    max_batch: int = Field(16, ge=1, le=1024, description="Requests decoded together.")
    max_context_tokens: int | None = Field(
        None, ge=16, description="A window smaller than the model's own, prompt and answer together."
    )
    default_max_tokens: int = Field(256, ge=1, description="New tokens where a request names no number.")
    prefill_chunk_tokens: int = Field(
        512, ge=16, description="Prompt tokens processed between two decoding steps."
    )
    max_queued_requests: int = Field(256, ge=1, description="Requests waiting beyond this answer 429.")
    prefix_cache_bytes: int = Field(
        64 << 20, ge=0, description="Memory for prompts seen before, per replica; 0: none."
    )
    timeout_s: Seconds = Field(120.0, description="How long one generation may take, queueing included.")
    num_replicas: int = Field(1, ge=1, description="Replicas to start with; each holds the base model.")
    max_replicas: int | None = Field(
        None, ge=1, description="Above num_replicas: Serve adds replicas by the length of their queues."
    )
    num_cpus: Cpus = Field(0.4, description="CPUs claimed per replica.")
    num_gpus: Gpus | None = Field(
        None,
        description="GPUs claimed per replica, or a part of one; default: what the others leave, shared by "
        "replicas.",
    )

    @model_validator(mode="after")
    def _one_backend(self) -> LanguageModelSettings:
        if (self.backend == "openai") != bool(self.url):
            raise ValueError('backend "openai" needs a url, and no other backend takes one')
        if self.backend == "openai" and not self.model:
            raise ValueError('backend "openai" needs the model\'s name at the endpoint')
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError("max_replicas is below num_replicas")
        check_device(self.device, self.num_gpus)
        return self


class AdapterSettings(Group):
    """LoRA adapters of the language model."""

    inbox: Path | None = Field(
        None,
        description="The one folder adapters are imported from; new ones are listed as candidates. "
        "Default: adapter-inbox in the data directory.",
    )
    slots: int = Field(32, ge=1, le=4096, description="Different adapters in one batch.")
    max_rank: int = Field(64, ge=1, le=512, description="Adapters of a higher rank are refused.")
    max_adapter_bytes: int = Field(
        256 << 20, ge=1024, description="Adapters whose files are larger are refused."
    )
    max_resident: int = Field(512, ge=1, description="Adapters kept in the memory of a replica.")
    max_resident_bytes: int = Field(1 << 30, ge=1 << 20, description="Memory those may take.")
    warm_up: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = Field(
        (), description="Adapters loaded at start, as in user/alice,domain/films."
    )


class AuditSettings(Group):
    """One JSON line per generation."""

    enabled: bool = Field(True, description="Write the audit log.")
    texts: bool = Field(False, description="With prompt and output, which are private.")
    max_bytes: int = Field(32 << 20, ge=1 << 16, description="Size at which the file is rotated.")
    keep_files: int = Field(5, ge=1, le=100, description="Rotated files kept.")


class IngressSettings(Group):
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
    embed_timeout_s: Seconds = Field(
        60.0, description="How long embeddings may take, waiting for the model included."
    )
    max_batch: int = Field(64, ge=1, description="Calls that share one handle call at most.")


class MetricsSettings(Group):
    """Figures for Prometheus."""

    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Where Ray's exporter listens under `weft run`, on loopback; default: the service's port "
        "plus one where that is free. Elsewhere `ray start --metrics-export-port` says so.",
    )
    interval_s: float = Field(
        5.0,
        ge=1,
        le=10,
        description="How often each process hands its figures to the exporter, which forgets a gauge that it "
        "has not heard of for 20 s.",
    )


class LogSettings(Group):
    """What replicas log."""

    slow_call_s: float = Field(
        1.0, ge=0, description="Calls that take longer have a line in the log of each part; 0: all calls."
    )
