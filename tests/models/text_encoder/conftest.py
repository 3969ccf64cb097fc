"""Text models small enough to build in a test, and an embeddings server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.text_encoder.sentence_transformer import SentenceTransformerEncoder
from tests.models.text_encoder.embeddings_server import EmbeddingsServer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights as sentence-transformers saves it: 16 dimensions, window 24."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    raw, saved = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "story", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: place for place, word in enumerate([*words, *(f"##{c}" for c in words[7:])])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        BertModel(config).save_pretrained(raw)
    BertTokenizerFast(vocab=vocabulary, model_max_length=24).save_pretrained(raw)
    transformer = Transformer(str(raw))
    pooling = Pooling(16, "mean", include_prompt=False)
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(
        str(saved), create_model_card=False
    )
    return saved


@pytest.fixture(scope="session")
def minilm() -> SentenceTransformerEncoder:
    """The shipped model in float32."""
    return SentenceTransformerEncoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as running:
        yield running
