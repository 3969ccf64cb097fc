"""Replicas of the language model in this process, over the model of `local_adapters`."""

from __future__ import annotations

import json
from typing import Any

from deployments.generation_messages import (
    ActivateAdapter,
    AdapterWritten,
    GenerateAnswer,
    PutAdapter,
)
from deployments.graph_state import GraphState
from deployments.language_model import LanguageModel
from deployments.settings import Settings
from tests.deployments.local_adapters import open_plain, put_in_inbox


class World:
    """A graph state and replicas of the language model on one data directory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = GraphState(settings)
        self.replicas: list[LanguageModel] = []

    async def replica(self, opener: Any = open_plain, **groups: Any) -> LanguageModel:
        settings = self.settings.model_copy(update=groups)
        replica = LanguageModel(settings, self.state, opener)
        self.replicas.append(replica)
        await replica.start()
        return replica

    async def activate(self, replica: LanguageModel, scope: Any, name: str, version: str, word: str) -> int:
        put_in_inbox(self.settings, f"{name}-{version}", word)
        done(await replica.put_adapter(PutAdapter(scope, name, version, path=f"{name}-{version}"), 0))
        written = await replica.activate_adapter(ActivateAdapter(scope, name, ((version, 1.0),)), 0)
        return done(written).version

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.stop()
        await self.state.close()


def done(found: Any) -> AdapterWritten:
    assert isinstance(found, AdapterWritten), found
    return found


def answered(found: Any) -> GenerateAnswer:
    assert isinstance(found, GenerateAnswer), found
    return found


def audit(settings: Settings) -> list[dict[str, Any]]:
    path = settings.audit_dir / "generations-0.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
