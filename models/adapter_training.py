"""Trains LoRA adapters of a base model on examples: a style, a domain, a user's own texts.

PEFT (huggingface/peft) puts the low-rank terms into the model; what is written is PEFT's layout as
`models.adapters` imports it. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import itertools
import math
import random
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional

from graph.errors import InvalidInput, TextTooLong, Unavailable
from models.language_model.base_model import BaseModel, open_base_model
from models.language_model.lora_config import LoraConfig, canonical_config
from models.language_model.lora_weights import CONFIG_FILE, WEIGHTS_FILE
from models.language_model.opening import LanguageModelSpec
from models.language_model.prompt import encode_prompt
from models.language_model.protocol import Message, Prompt

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Ends of the names of a Llama's or Qwen's linear layers."""

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

_MAX_TEXT_CHARS = 600
_QUESTIONS = (
    "What is on your mind?",
    "Tell me something.",
    "How would I say it?",
    "Write as I do.",
    "Go on.",
)
_IGNORED = -100
_MEASURED = 64
_STEPS, _MAX_EPOCHS = 100, 30  # where the caller names no number of epochs


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and what shall be answered; only the answer is learned."""

    prompt: Prompt
    answer: str


@dataclass(frozen=True, slots=True)
class AdapterProgress:
    """Where a training stands."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """What a training left, and what it did to the examples' answers."""

    folder: Path
    examples: int
    parameters: int
    steps: int
    loss_before: float
    """Mean of -ln p over the answers' tokens, of at most 64 of the examples, without the adapter."""
    loss_after: float
    """The same with it."""
    seconds: float


def train_adapter(
    base: str | Path,
    examples: Sequence[Example],
    out: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    target_modules: Sequence[str] = ALL_LINEAR,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_tokens: int = 1_000,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    on_progress: Callable[[AdapterProgress], None] = lambda progress: None,
) -> TrainedAdapter:
    """Train an adapter for the model in `base` and write it to the folder `out`.

    The same examples and seed give the same adapter on the same machine and number of threads.

    Args:
        base: folder or name of a model that transformers loads, of an architecture that is served; nothing is
            fetched.
        out: made, or replaced if it holds an adapter.
        target_modules: ends of the linear layers' names.
        epochs: how often each example is seen, parts of one, too; None: once, and up to thirty times where
            that makes fewer than a hundred steps.
        learning_rate: at its highest, after a short rise and before it falls; None: 0.5 by the model's width,
            at most 0.004.
        batch_tokens: of one step, padding included; an example that is longer has a step of its own.
        precision: of the products; auto takes bfloat16 where the hardware multiplies it.
        on_progress: called after each step.

    Raises InvalidInput for no examples, numbers out of range, modules that the model does not have and an
    `out` that holds something else; TextTooLong for an example beyond the model's window; Unavailable where
    the disk refuses; and what `models.language_model.base_model.open_base_model` raises.
    """
    _check(examples, rank, alpha, epochs, learning_rate, batch_tokens)
    out = out.resolve()
    _check_out(out)
    opened = open_base_model(LanguageModelSpec(str(base), device=device, dtype="float32"))
    _check_modules(opened, target_modules)
    rows = _encode(opened, examples)
    begun = time.monotonic()
    measured = _batches(rows[:_MEASURED], batch_tokens, random.Random(0), 1)  # noqa: S311
    causal = opened.model
    loss_before = _mean_loss(opened, measured, precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with_lora = _with_lora(opened, rank, alpha, target_modules)
    parameters = [p for p in with_lora.parameters() if p.requires_grad]
    if epochs is None:
        once = len(_batches(rows, batch_tokens, random.Random(seed), 1))  # noqa: S311
        epochs = max(1, min(_MAX_EPOCHS, round(_STEPS / once)))
    batches = _batches(rows, batch_tokens, random.Random(seed), epochs)  # noqa: S311
    highest = learning_rate or min(0.004, 0.5 / causal.config.hidden_size)
    optimizer = torch.optim.AdamW(parameters, lr=highest, betas=(0.9, 0.98), weight_decay=0.0)
    causal.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = highest * _rate(step, len(batches))
        loss = answer_loss(causal, *_on(opened, batch), precision=precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - begun
        on_progress(AdapterProgress(step + 1, len(batches), float(loss.detach()), seconds))
    causal.eval()
    loss_after = _mean_loss(opened, measured, precision)
    _write(with_lora, opened, rank, alpha, out)
    return TrainedAdapter(
        folder=out,
        examples=len(examples),
        parameters=sum(p.numel() for p in parameters),
        steps=len(batches),
        loss_before=loss_before,
        loss_after=loss_after,
        seconds=time.monotonic() - begun,
    )


def examples_from_texts(texts: Sequence[str]) -> list[Example]:
    """A user's own lines and notes as examples of how they write.

    A text answers one of a few questions that ask for nothing in particular; where it has several sentences,
    each of the later ones also answers the one before it. So what is learned is a voice, not facts: those
    belong into memories. Raises InvalidInput where no text holds anything.
    """
    found: list[Example] = []
    for text in texts:
        for n, part in enumerate(_parts(text)):
            question = _QUESTIONS[(len(found) + n) % len(_QUESTIONS)]
            found.append(Example((Message("user", question),), part))
            sentences = re.split(r"(?<=[.!?…])\s+", part)
            found += [
                Example((Message("user", before),), after)
                for before, after in itertools.pairwise(sentences)
                if before.strip() and after.strip()
            ]
    if not found:
        raise InvalidInput("there is no text to learn from; give at least one", param="texts")
    return found


def answer_loss(
    causal: Any, tokens: torch.Tensor, targets: torch.Tensor, *, precision: Precision = "float32"
) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens, with gradients.

    Scores over the vocabulary are computed for those alone. Attention looks back only and rows are padded on
    the right, so that no mask is needed.

    Args:
        causal: LlamaForCausalLM or a relative: a backbone `model` and a `lm_head`.
        tokens: [B, T] int64.
        targets: [B, T] int64, the next token where it is learned, else -100.
    """
    with products(precision, tokens.device.type):
        learned = targets.flatten() >= 0
        hidden = causal.model(input_ids=tokens, use_cache=False).last_hidden_state  # [B, T, d]
        logits = causal.lm_head(hidden.flatten(0, 1)[learned])  # [learned, V]
    return functional.cross_entropy(logits.float(), targets.flatten()[learned])


def products(precision: Precision, device_type: str = "cpu") -> Any:
    """A context in which products are of that precision; weights and sums stay float32."""
    if precision == "auto":
        if device_type == "cuda":
            narrow = torch.cuda.is_bf16_supported()
        else:
            narrow = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        precision = "bfloat16" if narrow else "float32"
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


# --- Checks ----------------------------------------------------------------------------------------------


def _check(
    examples: Sequence[Example],
    rank: int,
    alpha: float,
    epochs: float | None,
    learning_rate: float | None,
    batch_tokens: int,
) -> None:
    if not examples:
        raise InvalidInput("there are no examples to learn from; give at least one", param="examples")
    if any(not example.answer.strip() for example in examples):
        raise InvalidInput("an example's answer is empty; leave the example out", param="examples")
    if rank < 1:
        raise InvalidInput(f"rank is {rank}; must be at least 1", param="rank")
    for name, value in (
        ("alpha", alpha),
        ("epochs", 1 if epochs is None else epochs),
        ("batch_tokens", batch_tokens),
    ):
        if not (value > 0 and math.isfinite(value)):
            raise InvalidInput(f"{name} is {value}; must be above 0", param=name)
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise InvalidInput(
            f"learning_rate is {learning_rate}; must be between 0 and 1", param="learning_rate"
        )


def _check_out(out: Path) -> None:
    if not out.exists():
        return
    # It is replaced as a whole: nothing else may be in it.
    if not out.is_dir() or {file.name for file in out.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE}:
        raise InvalidInput(
            f"{out} is there and holds something else than an adapter; give another folder", param="out"
        )


def _check_modules(base: BaseModel, target_modules: Sequence[str]) -> None:
    ends = {name.rpartition(".")[2] for name in base.spec.linears if name != "lm_head"}
    unknown = sorted(set(target_modules) - ends)
    if unknown or not target_modules:
        raise InvalidInput(
            f"target_modules names {', '.join(unknown) or 'nothing'}; "
            f"{base.name} has {', '.join(sorted(ends))}",
            param="target_modules",
        )


# --- Examples --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    tokens: tuple[int, ...]
    prompt_tokens: int


def _parts(text: str) -> Iterator[str]:
    """A text's paragraphs, long ones cut between words."""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = " ".join(paragraph.split())
        while rest:
            cut = rest.rfind(" ", 0, _MAX_TEXT_CHARS) if len(rest) > _MAX_TEXT_CHARS else len(rest)
            cut = cut if cut > 0 else _MAX_TEXT_CHARS
            yield rest[:cut].strip()
            rest = rest[cut:].strip()


def _encode(base: BaseModel, examples: Sequence[Example]) -> list[_Row]:
    """Tokens as at serving time; a control token's spelling in a text is text, in the answer as well."""
    core = Tokenizer.from_str(base.tokenizer.backend_tokenizer.to_str())
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = True
    own_end = base.tokenizer.eos_token_id
    end = [own_end] if own_end in base.eos_token_ids else sorted(base.eos_token_ids)[:1]
    answers = core.encode_batch([example.answer.strip() for example in examples], add_special_tokens=False)
    rows = []
    for example, answer in zip(examples, answers, strict=True):
        prompt = encode_prompt(base.tokenizer, example.prompt).tokens
        tokens = (*prompt, *answer.ids, *end)
        if len(tokens) > base.max_tokens:
            raise TextTooLong(
                f"an example has {len(tokens)} tokens, the window of {base.name} {base.max_tokens}; "
                "shorten it",
                param="examples",
            )
        rows.append(_Row(tokens, len(prompt)))
    return rows


def _batches(
    rows: Sequence[_Row], batch_tokens: int, rng: random.Random, epochs: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of like length side by side, in random order, each as often as `epochs` says."""
    batches = []
    while epochs > 0:
        count = len(rows) if epochs >= 1 else max(1, round(epochs * len(rows)))
        chosen = sorted(rng.sample(list(rows), count), key=lambda row: len(row.tokens))
        groups: list[list[_Row]] = [[]]
        for row in chosen:
            if groups[-1] and (len(groups[-1]) + 1) * len(row.tokens) > batch_tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        batches += [_padded(group) for group in groups]
        epochs -= 1
    return batches


def _padded(rows: Sequence[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), _IGNORED)
    for n, row in enumerate(rows):
        own = torch.tensor(row.tokens)
        tokens[n, : len(own)] = own
        targets[n, row.prompt_tokens - 1 : len(own) - 1] = own[row.prompt_tokens :]
    return tokens, targets


def _on(base: BaseModel, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0].to(base.device), batch[1].to(base.device)


# --- Model -----------------------------------------------------------------------------------------------


def _with_lora(base: BaseModel, rank: int, alpha: float, target_modules: Sequence[str]) -> Any:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    config = PeftLoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides by it, whatever the number
        target_modules=list(target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(base.model, config)


def _rate(step: int, steps: int) -> float:
    """A rise over a tenth of the steps, then half a cosine down to a twentieth."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@torch.no_grad()
def _mean_loss(
    base: BaseModel, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], precision: Precision
) -> float:
    total, count = 0.0, 0
    for batch in batches:
        learned = int((batch[1] >= 0).sum())
        total += learned * float(answer_loss(base.model, *_on(base, batch), precision=precision))
        count += learned
    return total / count


def _write(with_lora: Any, base: BaseModel, rank: int, alpha: float, out: Path) -> None:
    """The two files of PEFT's layout, weights in float16, in one step where a folder's name can be taken."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(with_lora, save_embedding_layers=False)
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in tensors}
    config = LoraConfig(rank=rank, alpha=alpha, use_rslora=False, target_modules=None, base_model=base.name)
    made = out.with_name(f".{out.name}-{secrets.token_hex(8)}")
    try:
        made.mkdir(parents=True)
        (made / CONFIG_FILE).write_bytes(canonical_config(config, dict.fromkeys(modules, rank)))
        save_file(tensors, made / WEIGHTS_FILE, {"format": "pt"})
        (made / WEIGHTS_FILE).chmod(0o644)  # safetensors lets nobody else read what it writes
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    except OSError as error:
        raise Unavailable(f"the adapter cannot be written to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)  # it was renamed, if all went well
