"""A tiny language model whose words mean nothing, for a first start without a model of one's own.

Random weights over a vocabulary of whole words: what it says is readable nonsense. It shows adapters,
streams and swaps, and nothing about language.
"""

from __future__ import annotations

import glob
import math
import os
import secrets
import shutil
import time
from pathlib import Path

from graph.errors import Unavailable
from models.language_model.base_model import STAND_IN_MARK

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
_WIDTH = 96
_DEVIATION = 0.2
_LEFTOVER_S = 3_600.0


def make_stand_in(folder: Path) -> Path:
    """Make the model in `folder` unless it is there; the same bytes everywhere. About 2 MB, a second or two.

    Threads and processes may do so at once. Raises Unavailable when it cannot be written.
    """
    if (folder / "config.json").is_file():
        return folder
    made = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        made.mkdir(parents=True)
        _remove_leftovers(folder)
        _write(made)
        for path in made.iterdir():
            _sync(path)
        made.rename(folder)
    except OSError as error:
        # Another may have been quicker, with the same files.
        if not (folder / "config.json").is_file():
            raise Unavailable(
                f"the stand-in model cannot be made in {folder}: {error.strerror or error}; make room "
                "there, or give the folder of a model"
            ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)  # it was renamed, if all went well
    return folder


def _remove_leftovers(folder: Path) -> None:
    """What makers left that did not come to their end."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}-{'[0-9a-f]' * 16}"):
        try:
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age_s > _LEFTOVER_S:
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
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
            "hidden_size": _WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": _WINDOW,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
            STAND_IN_MARK: True,
        }
    )
    config.save_pretrained(folder)
    with torch.device("meta"):  # names and shapes alone: initialising draws from the process' own generator
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(_SEED)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape, dtype=torch.float32)
        else:
            # Uniform, of the same standard deviation: normal ones differ in a last bit between processors.
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32)
            weights[name] = (uniform - 0.5) * (math.sqrt(12) * _DEVIATION)
    # Whole words alone get a say: pieces of words and control tokens but the end are never the likeliest.
    says = [vocabulary[f"Ġ{word}"] for word in _WORDS] + [vocabulary[_SPECIAL[1]]]
    head = torch.zeros_like(weights["lm_head.weight"])
    head[says] = weights["lm_head.weight"][says] * 2.5
    weights["lm_head.weight"] = head
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
