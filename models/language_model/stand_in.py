"""A tiny language model whose words mean nothing, for a first start without a model of one's own.

Random weights over a vocabulary of whole words: what it says is readable nonsense. It shows adapters,
streams and swaps, and nothing about language.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from models.language_model.base_model import STAND_IN_MARK
from models.model_files import quiet

_WORDS = """
a about after again all always an and another any as at away back be because been before being best
better between big book both bring bright but by calm can city clear close cold come could dark day deep
did different do door dream each early easy end enough even evening every eye far fast father feel few
film find fire first for forest found four free friend from full garden gave get girl give glass go gold
good great green ground had half hand happy hard has have he head hear heart help her here high him his
home hope horse hour house how i if in into is island it its journey just keep kind king knew know land
large last late laugh learn leave left less let letter life light like line listen little live long look
lost loud love made make man many map may me mean meet might mind moon more morning most mother mountain
move much music must my name near never new next night no north not now ocean of off often old on once
one only open or other our out over own page paper park part past path people picture place play point
quiet rain read ready red remember rest right river road room round run sail same sand say sea second
see seem set seven she ship shore short should show side silver sing sky sleep slow small so some song
soon sound south spring star start still stone stop story strange street strong such summer sun sure
sweet take tale talk tell ten than that the their them then there these they thing think this those
three through time to today together told too town train tree true try turn two under until up us very
voice wait walk wall want warm was watch water wave way we well went were west what when where which
while white who why wide will wind window winter wish with without woman wonder wood word work world
would year yellow yes yet you young your
""".split()  # noqa: SIM905

_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_SEED = 20
_WINDOW = 2048


def make_stand_in(folder: Path) -> Path:
    """Make the model in `folder` unless it is there; the same bytes everywhere. About 2 MB, a second or two.

    Several processes may do so at once.
    """
    if (folder / "config.json").is_file():
        return folder
    made = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        _write(made)
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        # Another process was quicker, with the same files.
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _write(folder: Path) -> None:
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*_SPECIAL, *alphabet])}
    merges: list[tuple[str, str]] = []
    # Byte-level BPE whose merges spell each word from its left: any text can be written, words are one token.
    for word in _WORDS:
        pieces = f"Ġ{word}"
        for length in range(2, len(pieces) + 1):
            if pieces[:length] not in vocabulary:
                vocabulary[pieces[:length]] = len(vocabulary)
                merges.append((pieces[: length - 1], pieces[length - 1]))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        model_max_length=_WINDOW,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)

    config = LlamaConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(vocabulary),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": _WINDOW,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
            "initializer_range": 0.2,
            STAND_IN_MARK: True,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = LlamaForCausalLM(config)
        generator = torch.Generator().manual_seed(_SEED)
        # Whole words alone get a say: pieces of words and control tokens but the end are never the likeliest.
        head = torch.zeros(len(vocabulary), 96)
        says = [vocabulary[f"Ġ{word}"] for word in _WORDS] + [vocabulary[_SPECIAL[1]]]
        head[says] = torch.randn(len(says), 96, generator=generator) * 0.5
        model.lm_head.weight.data.copy_(head)
    with quiet():
        model.save_pretrained(folder)
