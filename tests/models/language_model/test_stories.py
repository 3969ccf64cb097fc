"""A real model, whose greedy text somebody else printed: llama2.c's stories260K."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.language_model.engine import Engine, EngineLimits
from models.language_model.protocol import GenerationRequest, Sampling
from tests.conftest import missing
from tests.models.language_model.tiny_models import submit


@pytest.fixture(scope="module")
def stories(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue("shared_data") / "stories260K"
    if not (folder / "stories260K.bin").is_file():
        missing(f"no stories260K in {folder.parent}")
    return folder


def read_model(path: Path) -> Any:
    """llama2.c's format: seven int32, then float32 weights. Its rotary pairs are neighbours; transformers'
    are half a head apart, so rows of q and k change places.
    """
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    flat = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=28).copy())
    place, d = 0, dim // heads

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return flat[place - size : place].view(*shape)

    def halves(weight: torch.Tensor, n: int) -> torch.Tensor:
        return weight.view(n, d // 2, 2, dim).transpose(1, 2).reshape(n * d, dim)

    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    tensors = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_heads * d, dim),
        "self_attn.v_proj": take(layers, kv_heads * d, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, stacked in tensors.items():
        for i in range(layers):
            weight = stacked[i]
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, heads if name.endswith("q_proj") else kv_heads)
            state[f"model.layers.{i}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=abs(vocab),
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def read_tokenizer(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """llama2.c's format: the longest token's length, then for each token a score, a length and bytes.

    Scores are ranks of merges, as in sentencepiece's BPE.
    """
    data, place = path.read_bytes(), 4
    pieces: list[str] = []
    for _ in range(vocab_size):
        _, size = struct.unpack_from("<fi", data, place)
        pieces.append(data[place + 8 : place + 8 + size].decode().replace(" ", "▁"))
        place += 8 + size
    pieces[0], pieces[1], pieces[2] = "<unk>", "<s>", "</s>"
    known = set(pieces)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    core = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_printed_story(stories: Path) -> None:
    model = read_model(stories / "stories260K.bin")
    tokenizer = read_tokenizer(stories / "tok512.bin", model.config.vocab_size)
    printed = re.search(r"-t 0\.0\n(.*?)\n```", (stories / "stories260K.md").read_text(), re.S)
    assert printed is not None
    story = printed[1]
    base: Any = SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        name="stories",
        digest="s",
        device=torch.device("cpu"),
        dtype=torch.float32,
        quantization="none",
        max_tokens=512,
        eos_token_ids=frozenset({1, 2}),
        spec=None,
    )
    engine = Engine(base, limits=EngineLimits(prefill_chunk_tokens=8))
    beginnings = ["Once upon a time", story[:150], story[:300]]
    heard = [
        submit(engine, GenerationRequest("r", b, Sampling(temperature=0.0, max_tokens=256)))
        for b in beginnings
    ]
    texts = [b + h.wait().text for b, h in zip(beginnings, heard, strict=True)]
    engine.close()
    assert texts[0].startswith(story)
    assert len(story) > 500
