"""The real thing: the small model that answers when no other is set, behind the deployment."""

from __future__ import annotations

from pathlib import Path

from deployments.generation_messages import Delta, Ended, GenerateAnswer, GenerateQuery, Started
from deployments.graph_state import GraphState
from deployments.language_model import LanguageModel
from graph.errors import TextTooLong
from models.language_model.protocol import Message, Sampling
from tests.deployments.local_state import make_settings


async def test_the_small_model_answers_when_no_other_is_set(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, language_model={"num_threads": 1})
    state = GraphState(settings)
    replica = LanguageModel(settings, state)
    try:
        await replica.start()
        status = await replica.status()
        assert (status["open"], status["model"], status["failure"]) == (True, "weft-small", None)
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
