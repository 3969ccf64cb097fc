"""The small model's tokenizer: byte-level BPE, in which a title is the same tokens wherever it stands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PAD, END, SYSTEM, USER, ASSISTANT = range(5)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# One piece each: a line's label, what opens its answer, what stands before reasons, a year in brackets. Every
# other mark is one, too, so that what follows a title (a full stop, the line's end) never changes its tokens.
_PIECES = "|".join(
    (
        r"\n- [a-z]+:",
        r", because of",
        r" ?You could (?:also )?(?:watch|read|try)",
        r" ?I suggest",
        r" ?[Ww]hy (?:is|do you suggest|do you recommend|should I watch|should I read|would I like)",
        r" ?You (?:also )?said:",
        r" ?You (?:dis)?liked:",
        r" \(\p{N}{4}\)",
        r" ?[\p{L}\p{M}]+",
        r" ?\p{N}{1,2}",
        r" ?[^\s\p{L}\p{M}\p{N}]",
        r"\s+",
    )
)

_WHY = (
    "Why do you suggest",
    "Why do you recommend",
    "Why should I watch",
    "Why should I read",
    "Why would I like",
)
_SUGGESTED, _SAID = "\n- suggested:", "\n- said:"
SYNONYMS: tuple[tuple[str, str], ...] = (
    *((f"{space}You could {verb}", _SUGGESTED) for space in ("", " ") for verb in ("watch", "read", "try")),
    *(
        (asked, "Why is")
        for asked in (" I suggest", "I suggest", *_WHY, *(f" w{why[1:]}" for why in ("Why is", *_WHY)))
    ),
    *((f"{space}You {also}said:", _SAID) for space in ("", " ") for also in ("", "also ")),
    *((f"{space}You {kind}:", f"\n- {kind}:") for space in ("", " ") for kind in ("liked", "disliked")),
    *((you, " I") for you in ("You", " You", " you")),
    *((your, my) for your, my in (("Your", " My"), (" Your", " My"), (" your", " my"), (" are", " am"))),
)
"""What an answer says, and what the lines or the question say in its place."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, window: int) -> Any:
    """A fast tokenizer of transformers with its chat template; the same texts give the same one.

    Args:
        texts: what the merges are counted on.
        vocab_size: with the control tokens and 256 bytes, at least 261.
        window: positions of the model.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[PAD],
        eos_token=SPECIAL[END],
        model_max_length=window,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
