"""The real thing, tiny: the stand-in that is made when no model is set, behind the deployment."""

from __future__ import annotations

import os
from pathlib import Path

from deployments.generation_messages import Delta, Ended, GenerateAnswer, GenerateQuery, Started
from deployments.graph_state import GraphState
from deployments.language_model import LanguageModel
from graph.errors import TextTooLong
from models.language_model.protocol import Message, Sampling
from tests.deployments.local_state import make_settings


async def test_the_stand_in_is_made_once_and_answers(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, language_model={"num_threads": 1})
    state = GraphState(settings)
    replica = LanguageModel(settings, state)
    try:
        await replica.start()
        status = await replica.status()
        assert (status["open"], status["meaningful"], status["failure"]) == (True, False, None)
        turns = (Message("system", "Be brief."), Message("user", "Hello"))
        query = GenerateQuery(turns, Sampling(max_tokens=8, temperature=0, ignore_eos=True), user_id="alice")
        answer = await replica.generate(query)
        assert isinstance(answer, GenerateAnswer)
        assert answer.ended.completion_tokens == 8
        assert answer.started.digest is None
        events = [event async for part in replica.stream(query) for event in part]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Ended)
        assert "".join(e.text for e in events if isinstance(e, Delta)) == answer.text
        assert events[0].cached_tokens >= answer.started.cached_tokens
        long = await replica.generate(GenerateQuery("word " * 50_000))
        assert isinstance(long, TextTooLong)
    finally:
        await replica.stop()
        await state.close()
    made = {path: path.stat().st_mtime_ns for path in settings.stand_in_dir.iterdir()}
    again = LanguageModel(settings, GraphState(settings))
    try:
        await again.start()
        assert (await again.status())["open"]
    finally:
        await again.stop()
        await again._source.close()
    assert {path: path.stat().st_mtime_ns for path in settings.stand_in_dir.iterdir()} == made
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".stand-in-model")]
