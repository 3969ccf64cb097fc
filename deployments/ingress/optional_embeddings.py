"""Embeddings for those who can do without: writes of items, and searches."""

from __future__ import annotations

import asyncio
import logging
import time

from ray.serve.handle import DeploymentHandle

from deployments.handles import answer_if_well
from deployments.messages import EmbedAnswer, EmbedQuery
from graph.errors import InvalidInput, WeftError

logger = logging.getLogger("weft.ingress")

_PAUSE_S = 5.0


class OptionalEmbeddings:
    """Asks the text embedder, and not again for a while once it did not answer: nobody waits in vain."""

    def __init__(self, embedder: DeploymentHandle) -> None:
        self._embedder = embedder
        self._paused_until = 0.0

    async def ask(self, query: EmbedQuery, timeout_s: float) -> EmbedAnswer | None:
        """The answer; None where there is none in time, or the embedder does not take these texts."""
        if time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                found: EmbedAnswer = await answer_if_well(self._embedder, "embed", query)
        except InvalidInput as error:
            # These texts are to blame, others need not wait.
            logger.warning("%d texts go without vectors: %s", len(query.texts), error.message)
            return None
        except (WeftError, TimeoutError) as error:
            self._paused_until = time.monotonic() + _PAUSE_S
            reason = error.message if isinstance(error, WeftError) else f"no answer within {timeout_s:g} s"
            logger.warning("texts go without vectors for %g s: %s", _PAUSE_S, reason)
            return None
        return found
