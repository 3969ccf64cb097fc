"""Plain data of generation and adapters that crosses deployment handles and the ingress' backend protocol."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.memory_messages import ContextCandidates, FittedContext
from models.adapter_pointers import AdapterArm, AdapterScope
from models.language_model.protocol import (
    FinishReason,
    Prompt,
    Sampling,
    Source,
    TokenLogprob,
)


@dataclass(frozen=True, slots=True)
class GenerateQuery:
    """One answer to be generated.

    `adapter` is a reference: `user/alice`, `domain/films`, `global/default` (what is active there), the same
    with `/version` behind it, a digest, or `base` for none; None goes down the cascade. At most one of
    `adapter` and `blend` is given. `min_version` is a version of this store, 0 for none.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    user_id: str | None = None
    domain: str | None = None
    adapter: str | None = None
    blend: tuple[tuple[str, float], ...] = ()  # (reference, weight)
    model: str | None = None  # None or the base model's name; else a reference, as `adapter`
    min_version: int = 0
    request_id: str = ""
    context: ContextCandidates | None = None  # of `user_id`; goes into the system message of a conversation
    max_context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: what the answer is generated with. See `protocol.AdapterChoice`."""

    model: str
    adapter: str | None
    digest: str | None
    source: Source
    why: str
    prompt_tokens: int
    cached_tokens: int
    version: int  # of the feed that the choice was made from
    context: FittedContext | None = None  # what the prompt holds of the query's; None without one


@dataclass(frozen=True, slots=True)
class Delta:
    """More of the answer."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """Last event of a stream. A stream that fails ends with a WeftError in its place."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    queued_ms: float
    first_token_ms: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class GenerateAnswer:
    """A whole answer."""

    text: str
    started: Started
    ended: Ended
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class LanguageModelInfo:
    """The base model, and the adapters whose pointers are set, by reference (`user/alice`)."""

    model: str
    adapters: tuple[str, ...]


# -------------------------------------------------------------------------------------------------- adapters


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """A version that was put: a label somebody chose for immutable files, which the digest names."""

    scope: AdapterScope
    name: str
    version: str
    digest: str
    size_bytes: int
    rank: int
    modules: tuple[str, ...]  # ends of their names, as in `q_proj`
    created_at: float  # Unix seconds
    active: bool = False
    resident: bool = False  # in the memory of the replica that answered


@dataclass(frozen=True, slots=True)
class AdapterState:
    """What a pointer says: nothing (no arms), one version, or several that are compared."""

    scope: AdapterScope
    name: str
    arms: tuple[AdapterArm, ...]
    previous: tuple[AdapterArm, ...]
    version: int  # of the feed, when the pointer was last written
    action: str = ""  # "activate", "rollback" or "deactivate"


@dataclass(frozen=True, slots=True)
class AdapterCandidate:
    """A folder in the inbox: put it with its `path`, or mend what `problem` says."""

    path: str
    digest: str | None
    size_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """`versions` in the order of their names; `next` is the cursor of the page after this one."""

    versions: tuple[AdapterVersion, ...]
    states: tuple[AdapterState, ...]
    candidates: tuple[AdapterCandidate, ...]
    version: int
    next: str | None = None


@dataclass(frozen=True, slots=True)
class PutAdapter:
    """Files to become a version: a folder or `.pt` file in the inbox, or an archive the ingress received.

    Exactly one of `path` (below the inbox) and `upload` (a tar file the ingress wrote into the folder of
    uploads, named without a folder) is given.
    """

    scope: AdapterScope
    name: str
    version: str
    path: str | None = None
    upload: str | None = None


@dataclass(frozen=True, slots=True)
class ActivateAdapter:
    """Make versions of (scope, name) the active ones, keeping what was; no arms: none is active."""

    scope: AdapterScope
    name: str
    arms: tuple[tuple[str, float], ...]  # (version, weight)


@dataclass(frozen=True, slots=True)
class AdapterWritten:
    """A change of an adapter's pointers: the feed's version that has it, and what holds from there on."""

    version: int
    state: AdapterState | None = None
    put: AdapterVersion | None = None
    replayed: bool = False
