"""Training of the small model: a Llama of 2.8 million parameters, on nothing but the generated corpus."""

# ruff: noqa: S311  (chance that hides nothing)
from __future__ import annotations

import itertools
import math
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, TypeAlias

import torch

from models.adapter_training import Precision, answer_loss, products
from models.small_model.batches import Batch, Batcher, Row, encode_conversations, make_drill
from models.small_model.conversations import Conversation, make_conversation
from models.small_model.copying import prepare_copying
from models.small_model.lookups import make_lookups
from models.small_model.tokenizer import END, PAD, SYNONYMS, train_tokenizer
from models.small_model.words import STRANGE_SHARE, TRAINING, Words

Progress: TypeAlias = Callable[[str], None]


_PATIENCE_S = 900.0
"""How long workers wait for each other: then one other than the first was killed, and all end."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, apart from the last bits of floating-point sums."""

    hidden: int = 192
    layers: int = 5
    heads: int = 3
    intermediate: int = 512
    rope_theta: float = 1e6
    vocab_size: int = 3072
    window: int = 2048
    tokens: int = 30_000_000
    """Seen in training, padding included."""
    workers: int = 2
    """Processes that train together, each with one thread."""
    batch_tokens: int = 1_500
    """Of each worker, in every step."""
    easy_share: float = 0.06
    """Of the tokens: short contexts and many copying drills first."""
    learning_rate: float = 1.6e-3
    warmup_steps: int = 80
    weight_decay: float = 0.05
    held_out: int = 120
    """Conversations that measure on the way."""
    strange_share: float = STRANGE_SHARE
    lookup_share: float = 0.3
    """Of the conversations: those that ask for every line by something in it."""
    tokenizer_conversations: int = 12_000
    rows_at_once: int = 2_000
    precision: Precision = "auto"
    """Of the products; weights and sums are float32. auto: bfloat16 where the processor has it."""
    start: str = ""
    """A folder to go on from, with its tokenizer; empty: from the beginning."""
    copies: bool = True
    """Start from heads that copy (`copying`), not from random ones alone."""
    seed: int = 20


TINY = Recipe(
    hidden=32, layers=2, heads=2, intermediate=64, vocab_size=400, window=1024, tokens=60_000,
    batch_tokens=3_000, workers=1, copies=False, warmup_steps=4, held_out=20, tokenizer_conversations=150,
    rows_at_once=60,
)  # fmt: skip
"""A toy that is trained in seconds, to see that everything works."""


def train_small_model(recipe: Recipe, out: Path, progress: Progress = lambda line: None) -> dict[str, float]:
    """Train a model and write it to `out` as transformers loads it; checkpoints go there on the way.

    Each worker is a process with one thread and its own batches; gradients are averaged at every step. (Two
    threads in one process wait for each other at a thousand small products a second.) Returns the share of
    held-out answers whose every token is the likeliest, by kind of question.
    """
    tokenizer = _make_tokenizer(recipe)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    team = _Team.of(recipe)
    others = [_spawn(team, recipe, out, rank) for rank in range(1, recipe.workers)]
    try:
        return _work(team, recipe, tokenizer, 0, out, progress)
    except BaseException:
        team.barrier.abort()
        raise
    finally:
        for other in others:
            other.join()


def _spawn(team: _Team, recipe: Recipe, out: Path, rank: int) -> Any:
    process = get_context("spawn").Process(target=_help, args=(team, recipe, out, rank), daemon=True)
    process.start()
    return process


def _help(team: _Team, recipe: Recipe, out: Path, rank: int) -> None:
    from transformers import AutoTokenizer

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        _work(team, recipe, AutoTokenizer.from_pretrained(out), rank, out, lambda line: None)
    except BrokenBarrierError:  # the first worker was interrupted, and says so
        return
    except BaseException:
        team.barrier.abort()
        raise


def _end_with_parent() -> None:
    """Nobody who waits for a killed process waits long."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(
    team: _Team, recipe: Recipe, tokenizer: Any, rank: int, out: Path, progress: Progress
) -> dict[str, float]:
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, _synonyms(tokenizer))
    held_rng = random.Random(recipe.seed + 1)
    held = [make_conversation(held_rng, TRAINING) for _ in range(recipe.held_out)] if rank == 0 else []
    progress(f"{sum(p.numel() for p in model.parameters()):,} parameters, {recipe.tokens:,} tokens")
    optimizer = _optimizer(model, recipe)
    batches = _stream(recipe, tokenizer, random.Random(f"{recipe.seed} {rank}"))
    seen, step, begun, losses = 0, 0, time.monotonic(), list[float]()
    next_report, next_measure = 0.01, 0.1
    while seen < recipe.tokens:
        batch = batches.send(seen / recipe.tokens) if step else next(batches)
        rate = _learning_rate(recipe, step, seen)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = answer_loss(model, batch.tokens, batch.targets, precision=recipe.precision)
        loss.backward()
        step, seen = step + 1, seen + team.share_gradients(model, batch.tokens.numel(), rank)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if rank:
            continue
        share = min(1.0, seen / recipe.tokens)
        if share >= next_report:
            seconds = time.monotonic() - begun
            recent = sum(losses[-100:]) / len(losses[-100:])
            progress(
                f"{share:4.0%} step {step} loss {recent:.4f} rate {rate:.2e} {seen / seconds:,.0f} tokens/s, "
                f"{seconds * (1 / share - 1) / 60:.1f} minutes left"
            )
            next_report = share + 0.02
        if share >= next_measure and share < 1:
            progress(_shown(measure(model, tokenizer, held, recipe.precision)))
            save(model, tokenizer, out)
            next_measure = share + 0.1
    if rank:
        return {}
    found = measure(model, tokenizer, held, recipe.precision)
    progress(_shown(found))
    save(model, tokenizer, out)
    return found


@dataclass(frozen=True)
class _Team:
    """What workers share: everybody's gradients, and a place to wait for each other."""

    gradients: torch.Tensor  # [workers, parameters + 1] float32; the last one counts tokens
    barrier: Any

    @classmethod
    def of(cls, recipe: Recipe) -> _Team:
        size = sum(p.numel() for p in make_model(recipe).parameters()) + 1
        shared = torch.zeros(recipe.workers, size).share_memory_()
        return cls(shared, get_context("spawn").Barrier(recipe.workers))

    def share_gradients(self, model: Any, tokens: int, rank: int) -> int:
        """Replace the model's gradients by the mean of all workers'; returns the tokens of all."""
        if len(self.gradients) == 1:
            return tokens
        parameters = list(model.parameters())
        own = self.gradients[rank]
        own[:-1] = torch.cat([p.grad.flatten() for p in parameters])
        own[-1] = tokens
        self.barrier.wait(_PATIENCE_S)
        mean = self.gradients.mean(0)
        self.barrier.wait(_PATIENCE_S)  # nobody writes before all have read
        for p, part in zip(parameters, mean[:-1].split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
        return round(float(mean[-1]) * len(self.gradients))


def make_model(recipe: Recipe, synonyms: Sequence[tuple[int, int]] = ()) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if recipe.start:
        started: Any = LlamaForCausalLM.from_pretrained(recipe.start, dtype=torch.float32)
        return started.train()
    config = LlamaConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": recipe.vocab_size,
            "hidden_size": recipe.hidden,
            "intermediate_size": recipe.intermediate,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": recipe.heads,
            "max_position_embeddings": recipe.window,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_type": "default", "rope_theta": recipe.rope_theta},
            "tie_word_embeddings": True,
            "pad_token_id": PAD,
            "bos_token_id": None,
            "eos_token_id": END,
        }
    )
    model: Any = LlamaForCausalLM(config)
    if recipe.copies:
        prepare_copying(model, torch.Generator().manual_seed(recipe.seed), synonyms)
    return model.train()


@torch.inference_mode()
def measure(
    model: Any, tokenizer: Any, conversations: list[Conversation], precision: Precision = "float32"
) -> dict[str, float]:
    """Share of answers whose every token is the likeliest, given what stands before: greedy answers are
    exactly these. By kind of question, and for all.
    """
    model.eval()
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for conversation in conversations:
        row = encode_conversations(tokenizer, [conversation.messages()])[0]
        with products(precision):
            logits = model(torch.from_numpy(row.tokens)[None], use_cache=False).logits[0, :-1]
        hits = (logits.argmax(-1).numpy() == row.tokens[1:]) | ~row.learned[1:]
        ends = [n for n in range(len(hits)) if row.learned[n + 1] and row.tokens[n + 1] == END]
        begin = 0
        for turn, end in zip(conversation.turns, ends, strict=True):
            right[turn.kind].append(bool(hits[begin : end + 1].all()))
            begin = end + 1
    model.train()
    everything = [hit for hits in right.values() for hit in hits]
    found = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
    return found | {"all": sum(everything) / len(everything)}


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a folder as transformers loads it, weights in float16."""
    import copy

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    narrow = copy.deepcopy(model).to(torch.float16)
    narrow.save_pretrained(out)
    for file in out.iterdir():  # safetensors lets nobody else read what it writes
        file.chmod(0o644)


def _make_tokenizer(recipe: Recipe) -> Any:
    if recipe.start:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(recipe.start)
    rng = random.Random(recipe.seed)
    conversations = (make_conversation(rng, TRAINING) for _ in range(recipe.tokenizer_conversations))
    texts = (message.content for one in conversations for message in one.messages())
    # Often enough for a token of their own, also those that are rare.
    phrases = [text for pair in SYNONYMS for text in pair] * (recipe.tokenizer_conversations // 20)
    return train_tokenizer(itertools.chain(texts, phrases), recipe.vocab_size, recipe.window)


def _synonyms(tokenizer: Any) -> list[tuple[int, int]]:
    """Those of `SYNONYMS` that are one token each."""
    ids = [[tokenizer.backend_tokenizer.encode(text).ids for text in pair] for pair in SYNONYMS]
    return [(one[0], other[0]) for one, other in ids if len(one) == len(other) == 1]


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    wide = [p for p in model.parameters() if p.ndim >= 2]
    narrow = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": wide, "weight_decay": recipe.weight_decay}, {"params": narrow, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _learning_rate(recipe: Recipe, step: int, seen: int) -> float:
    """A linear rise, then half a cosine down to a fiftieth."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, seen / recipe.tokens)))
    return recipe.learning_rate * rise * fall


def _stream(recipe: Recipe, tokenizer: Any, rng: random.Random) -> Generator[Batch, float | None, None]:
    """Batches without end, each row used once. `send` the share of the training that is done."""
    done, batcher = 0.0, Batcher(recipe.batch_tokens)
    while True:
        rows = _rows(recipe, tokenizer, rng, easy=done < recipe.easy_share)
        rng.shuffle(rows)
        for row in rows:
            batch = batcher.add(row)
            if batch is not None:
                done = (yield batch) or done


def _rows(recipe: Recipe, tokenizer: Any, rng: random.Random, *, easy: bool) -> list[Row]:
    count = recipe.rows_at_once
    drills = count // (6 if easy else 40)
    most, turns = (5, 3) if easy else (25, 6)

    def words() -> Words:
        return TRAINING.estranged(rng) if rng.random() < recipe.strange_share else TRAINING

    lookups = round(recipe.lookup_share * count)
    conversations = [
        make_conversation(rng, words(), max_lines=most, max_turns=turns).messages()
        for _ in range(count - drills - lookups)
    ]
    conversations += [make_lookups(rng, words()).messages() for _ in range(lookups)]
    rows = encode_conversations(tokenizer, conversations)
    rows += [make_drill(rng, recipe.vocab_size) for _ in range(drills)]
    return [row for row in rows if len(row.tokens) <= recipe.window]


def _shown(shares: dict[str, float]) -> str:
    return "answers right to the last token: " + ", ".join(f"{kind} {s:.0%}" for kind, s in shares.items())
