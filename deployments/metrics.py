"""Every metric of the service: its name with the unit, what it means, its labels, and who measures it.

Prometheus reads them from Ray's exporter, which puts `ray_` before each name (docs/metrics.md, whose table is
made from here). Labels take few values: routes are templates, and no user, item, adapter or text is one.
"""

from __future__ import annotations

from deployments.metric_types import Counter, Gauge, Histogram, Metric

PREFIX = "weft_"

INGRESS, ENCODER, RETRIEVER = "Ingress", "GraphEncoder", "Retriever"
EMBEDDER, INDEXER, MODEL = "TextEmbedder", "TextIndexer", "LanguageModel"
KEEPER, STATE = "GraphKeeper", "GraphState"
_FOLLOWERS = (ENCODER, RETRIEVER, EMBEDDER, INDEXER, MODEL)

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
# Between whole numbers, so that the middles of the first buckets, which Ray's exporter adds up, are sizes.
SIZES = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 256.5, 1024.5, 5000.5)

# ------------------------------------------------------------------------------------------------- requests

REQUESTS = Counter(
    f"{PREFIX}requests_total",
    "HTTP requests answered. `route` is a template, `unmatched` where a request reached none; `status` "
    "499 is a client that went away.",
    ("method", "route", "status"),
    parts=(INGRESS,),
)
REQUEST_DURATION = Histogram(
    f"{PREFIX}request_duration_seconds",
    "From a request's first byte at the ingress to the last of its answer, streams included.",
    ("method", "route"),
    bounds=SECONDS,
    parts=(INGRESS,),
)
QUEUE = Histogram(
    f"{PREFIX}queue_seconds",
    "How long the first in line had waited when `part` turned to it, or, of calls that wait for each other "
    "in the ingress (retriever, graph_state), when they left together; for graph_encoder since the retriever "
    "sent the call.",
    ("part",),
    bounds=SECONDS,
    parts=(INGRESS, ENCODER, EMBEDDER, MODEL, STATE),
)
INFERENCE = Histogram(
    f"{PREFIX}inference_seconds",
    "How long `part` computed: a batch of user vectors, a batch ranked or searched, a slice of texts, or one "
    "generation from its place in the batch to its end.",
    ("part",),
    bounds=SECONDS,
    parts=(ENCODER, RETRIEVER, EMBEDDER, MODEL),
)
WAITING = Gauge(
    f"{PREFIX}waiting_requests",
    "Requests in line for `part`, at whoever measures it; for text_embedder texts.",
    ("part",),
    parts=(INGRESS, EMBEDDER, MODEL, STATE),
)

# ------------------------------------------------------------------------------------------ writes, the feed

WRITES = Counter(
    f"{PREFIX}writes_total",
    "Write requests by outcome: changed, unchanged, replayed (an idempotency key seen before), refused, "
    "overloaded, unavailable (the store does not answer), unknown (it broke off while it committed).",
    ("outcome",),
    parts=(STATE,),
)
COMMIT_GROUP = Histogram(
    f"{PREFIX}commit_group_writes",
    "Write requests that shared a transaction.",
    bounds=SIZES,
    parts=(STATE,),
)
COMMIT = Histogram(
    f"{PREFIX}commit_seconds",
    "One group of writes planned, committed and applied.",
    bounds=SECONDS,
    parts=(STATE,),
)
STORE_UP = Gauge(
    f"{PREFIX}store_up",
    "1 if the store answered the last group of writes, 0 if not or if one has taken 10 s by now.",
    parts=(STATE,),
)
WRITER_EPOCH = Gauge(
    f"{PREFIX}writer_epoch",
    "Which start of the writer this is, counted over the store's whole life: it grows with each restart.",
    parts=(STATE,),
)
HEAD_VERSION = Gauge(f"{PREFIX}head_version", "Newest version of the graph.", parts=(STATE,))
NODES = Gauge(f"{PREFIX}graph_rows", "Live users, items, ratings and memories.", ("kind",), parts=(STATE,))
REPLICA_VERSION = Gauge(
    f"{PREFIX}replica_version", "Version of the graph that this replica has reached.", parts=_FOLLOWERS
)
FEED_LAG = Gauge(
    f"{PREFIX}feed_lag_seconds",
    "How long ago this replica was last level with the head; 0 while it is, as far as it knows.",
    parts=_FOLLOWERS,
)
KEYS_LAG = Gauge(
    f"{PREFIX}keys_lag_seconds",
    "How long ago this replica was last known to have all API keys. Only where keys are required.",
    parts=(INGRESS,),
)
ITEM_VERSION = Gauge(
    f"{PREFIX}item_vectors_version", "Version of the graph that item vectors are of.", parts=(RETRIEVER,)
)
ENCODER_ACTIVE = Gauge(
    f"{PREFIX}encoder_info",
    "1 for the encoder that this replica answers with, 0 for those it answered with before.",
    ("digest",),
    parts=(ENCODER, RETRIEVER),
)
WRITERS_REPLACED = Counter(
    f"{PREFIX}writers_replaced_total", "Graph states that hung and were killed.", parts=(KEEPER,)
)

# --------------------------------------------------------------------------------------- texts and the cache

CACHE_HITS = Counter(
    f"{PREFIX}cache_hits_total",
    "Texts whose vector a tier had: memory, or the store behind it.",
    ("model", "tier"),
    parts=(EMBEDDER,),
)
CACHE_MISSES = Counter(
    f"{PREFIX}cache_misses_total",
    "Texts that a tier was asked for and did not have.",
    ("model", "tier"),
    parts=(EMBEDDER,),
)
CACHE_COALESCED = Counter(
    f"{PREFIX}cache_coalesced_texts_total",
    "Texts that waited for the same text of another call, or of the same.",
    ("model",),
    parts=(EMBEDDER,),
)
TEXTS_ENCODED = Counter(
    f"{PREFIX}encoded_texts_total", "Texts that the text model computed.", ("model",), parts=(EMBEDDER,)
)
CACHE_ERRORS = Counter(
    f"{PREFIX}cache_errors_total",
    "What the cache did without: store (a call failed), skipped (not made, the breaker was open), damaged "
    "(an entry that was none), dropped (an entry not written).",
    ("model", "kind"),
    parts=(EMBEDDER,),
)
CACHE_EVICTIONS = Counter(
    f"{PREFIX}cache_evictions_total",
    "Entries that the memory tier pushed out.",
    ("model",),
    parts=(EMBEDDER,),
)
CACHE_MEMORY = Gauge(f"{PREFIX}cache_memory_bytes", "Size of the memory tier.", ("model",), parts=(EMBEDDER,))
BREAKER_OPEN = Gauge(
    f"{PREFIX}cache_breaker_open",
    "1 while the cache's store is not asked because it did not answer; 0.5 while one call finds out.",
    ("model",),
    parts=(EMBEDDER,),
)
TEXTS_WITHOUT_VECTOR = Gauge(
    f"{PREFIX}texts_without_vector", "Items and memories whose text waits for a vector.", parts=(INDEXER,)
)

# ------------------------------------------------------------------------------------------------ generation

GENERATIONS = Counter(
    f"{PREFIX}generations_total",
    "Generations by who chose their adapter (`source`: request, user, domain, global, base; none: they ended "
    "before) and how they ended (stop, length, cancelled, or an error's code).",
    ("source", "outcome"),
    parts=(MODEL,),
)
PROMPT_TOKENS = Counter(
    f"{PREFIX}prompt_tokens_total", "Tokens of prompts, counted when a generation ends.", parts=(MODEL,)
)
CACHED_TOKENS = Counter(
    f"{PREFIX}cached_prompt_tokens_total",
    "Tokens of prompts, among those, that the prefix cache had.",
    parts=(MODEL,),
)
COMPLETION_TOKENS = Counter(
    f"{PREFIX}completion_tokens_total", "Tokens generated, counted as they come.", parts=(MODEL,)
)
FIRST_TOKEN = Histogram(
    f"{PREFIX}first_token_seconds",
    "From a generation's submission to its first token, the wait for a place in the batch included.",
    bounds=SECONDS,
    parts=(MODEL,),
)
OUTPUT_TOKEN = Histogram(
    f"{PREFIX}output_token_seconds",
    "Mean time of a generation's tokens after the first.",
    bounds=SECONDS,
    parts=(MODEL,),
)
PREFIX_LOOKUPS = Counter(
    f"{PREFIX}prefix_cache_lookups_total",
    "Prompts whose beginning the prefix cache had (hit) or had not (miss).",
    ("outcome",),
    parts=(MODEL,),
)
PREFIX_BYTES = Gauge(f"{PREFIX}prefix_cache_bytes", "Size of the prefix cache.", parts=(MODEL,))
ENGINE_ROWS = Gauge(
    f"{PREFIX}engine_rows", "Places in the batch: busy, and free.", ("state",), parts=(MODEL,)
)
OUT_OF_MEMORY = Counter(
    f"{PREFIX}engine_out_of_memory_total",
    "Steps and admissions that memory did not suffice for.",
    parts=(MODEL,),
)
KV_CACHE = Gauge(f"{PREFIX}kv_cache_bytes", "Keys and values of the batch.", parts=(MODEL,))
ADAPTER_EVENTS = Counter(
    f"{PREFIX}adapter_events_total",
    "Adapters in a replica's memory: load, failure (of a load), hit, miss (a load was begun), eviction.",
    ("event",),
    parts=(MODEL,),
)
ADAPTERS_RESIDENT = Gauge(f"{PREFIX}adapters_resident", "Adapters in a replica's memory.", parts=(MODEL,))
ADAPTER_MEMORY = Gauge(f"{PREFIX}adapter_memory_bytes", "Size of those.", parts=(MODEL,))

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def metrics_markdown() -> str:
    """The table of docs/metrics.md."""
    lines = ["| metric | type | labels | measured by | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        parts = ", ".join(metric.parts)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {parts} | {metric.description} |")
    return "\n".join(lines) + "\n"
