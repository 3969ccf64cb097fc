"""Text models as the feed names them: which one search answers with, which one is being prepared.

Pointers of scope `text_model`: `active` is the model whose vectors answer, `candidate` the one that nodes are
being embedded with. Each names a model by `Fingerprint.name`. Scope `text_model_spec` remembers under that
name how the model was opened, so that a process that needs an older one can open it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deployments.encoder_pointers import ACTIVE as ACTIVE_ENCODER
from deployments.encoder_pointers import CANDIDATE as CANDIDATE_ENCODER
from deployments.encoder_pointers import digest_of
from deployments.setting_groups import TextEmbedderSettings
from graph.errors import InvalidInput
from graph.schema import PutPointer
from graph.view import GraphView
from models.text_encoder.opening import TextModelSpec
from models.text_encoder.protocol import Fingerprint

SCOPE, ACTIVE, CANDIDATE = "text_model", "active", "candidate"
SPECS = "text_model_spec"
_KEPT = ("model", "backend", "url", "prompt", "dimensions", "max_tokens")
_MAX_DEFAULT_THREADS = 4


def model_named(view: GraphView, pointer: str) -> str | None:
    """Name of the text model that the pointer holds, if any."""
    found = view.pointer(SCOPE, pointer)
    name = None if found is None else found.value.get("name")
    return str(name) if name else None


def put_model(pointer: str, name: str | None) -> PutPointer:
    return PutPointer(SCOPE, pointer, {"name": name})


def configured_spec(settings: TextEmbedderSettings, cpu_count: int) -> TextModelSpec:
    """The model of the settings; raises InvalidInput where they contradict each other."""
    key = settings.api_key
    return TextModelSpec(
        model=settings.model,
        backend=settings.backend,
        url=settings.url,
        api_key=None if key is None else key.get_secret_value(),
        device=settings.device,
        dtype=settings.dtype,
        prompt=settings.prompt,
        dimensions=settings.dimensions,
        max_tokens=settings.max_tokens,
        num_threads=settings.num_threads or min(cpu_count, _MAX_DEFAULT_THREADS),
        allow_download=settings.allow_download,
        timeout_s=settings.timeout_s,
    )


def spec_value(spec: TextModelSpec, fingerprint: Fingerprint) -> dict[str, object]:
    """How the model was opened, as plain JSON: without secrets and what only concerns one machine."""
    value: dict[str, object] = {field: getattr(spec, field) for field in _KEPT}
    value["dtype"] = fingerprint.dtype if spec.backend == "sentence-transformers" else "auto"
    return value


def remembered_spec(view: GraphView, name: str, here: TextModelSpec) -> TextModelSpec | None:
    """How to open the model of that name on this machine; None where the feed does not know it.

    Secrets, device and threads are those of `here`, the configured model.
    """
    found = view.pointer(SPECS, name)
    if found is None:
        return None
    return _opened_like(found.value, here)


def _opened_like(value: Mapping[str, object], here: TextModelSpec) -> TextModelSpec | None:
    try:
        spec = replace(here, **{field: value[field] for field in (*_KEPT, "dtype")})  # type: ignore[arg-type]
    except (InvalidInput, AttributeError, KeyError, TypeError):
        return None  # written by a version that knew other backends
    # The key goes to the endpoint it was given for and to no other.
    return spec if spec.url == here.url else replace(spec, api_key=None)


def models_in_use(view: GraphView, encoder_dir: Path) -> tuple[str, ...]:
    """Names of the text models whose vectors something reads: search, or the features of an encoder.

    The active one first.
    """
    named = [model_named(view, ACTIVE), model_named(view, CANDIDATE)]
    for pointer in (ACTIVE_ENCODER, CANDIDATE_ENCODER):
        digest = digest_of(view, pointer)
        named.append(None if digest is None else text_model_of(encoder_dir / digest))
    return tuple(dict.fromkeys(name for name in named if name))


def text_model_of(encoder: Path) -> str | None:
    """Name of the text model that an encoder's item features come from, if any.

    Reads the manifest alone: whoever loads the encoder verifies it, and one that is damaged needs no vectors.
    """
    try:
        features = json.loads((encoder / "encoder.json").read_bytes())["features"]
        name = features.get("text_model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return name if isinstance(name, str) else None
