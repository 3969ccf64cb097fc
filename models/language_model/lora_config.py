"""`adapter_config.json` of a LoRA adapter: what of it matters, and what is refused.

Patterns of ranks and alphas are regular expressions in PEFT. Here they are names of modules or ends of such
names, perhaps between `^` and `$`: a client's regular expression could keep a thread busy for hours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from graph.errors import InvalidAdapter

MAX_CONFIG_BYTES = 1 << 20
_MAX_NAMES = 4_096
_MAX_RANK, _MAX_ALPHA = 65_536, 1e6

# Fields with which the answer is more than base(x) + scaling * B A x; all are off when empty.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the low-rank ones (modules_to_save)",
    "lora_bias": "biases (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
    "layer_replication": "replicated layers (layer_replication)",
    "megatron_config": "Megatron layers (megatron_config)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "bare parameters (target_parameters)",
}
# Others (pissa, corda, olora, loftq, ...) change the base model's weights: the files do not have it all.
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_PATTERN = re.compile(r"\^?((?:[A-Za-z0-9_]|\\?\.)+)\$?")


@dataclass(frozen=True)
class LoraConfig:
    """What a configuration says about the low-rank terms."""

    rank: int
    alpha: float
    use_rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    """Names or ends of names; None where the file has a regular expression, which is not followed."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    """Last part of the base model's name or path, if the file names one."""

    def rank_of(self, module: str) -> int:
        """Rank of a module, by its full name."""
        return next((v for k, v in self.rank_pattern.items() if _fits(k, module)), self.rank)

    def alpha_of(self, module: str) -> float:
        return next((v for k, v in self.alpha_pattern.items() if _fits(k, module)), self.alpha)

    def scaling(self, module: str) -> float:
        """What the product B A is multiplied with: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the adapter is meant for a module; True where that cannot be known."""
        if self.target_modules is None:
            return True
        return any(module == t or module.endswith(f".{t}") for t in self.target_modules)


def parse_config(data: bytes) -> LoraConfig:
    """Read the bytes of an `adapter_config.json`; InvalidAdapter says what is not supported or wrong."""
    values = _parse_json(data)
    if values.get("peft_type") != "LORA":
        raise InvalidAdapter(f"peft_type is {values.get('peft_type')!r:.80}; must be 'LORA'")
    for name, what in _REFUSED.items():
        if values.get(name) not in (None, False, [], {}, ""):
            raise InvalidAdapter(f"the adapter uses {what}, which is not supported; train it without")
    if values.get("bias", "none") != "none":
        raise InvalidAdapter(f"bias is {values['bias']!r:.80}; trained biases are not supported, only 'none'")
    start = values.get("init_lora_weights", True)
    if not (
        start is None
        or isinstance(start, bool)
        or (isinstance(start, str) and start.lower() in _HARMLESS_STARTS)
    ):
        raise InvalidAdapter(
            f"init_lora_weights is {start!r:.80}, which changes the base model too; convert the adapter with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    rslora = values.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise InvalidAdapter(f"use_rslora is {rslora!r:.80}; must be true or false")
    ranks, alphas = _mapping(values, "rank_pattern"), _mapping(values, "alpha_pattern")
    return LoraConfig(
        rank=_rank(values.get("r"), "r"),
        alpha=_alpha(values.get("lora_alpha"), "lora_alpha"),
        use_rslora=rslora,
        target_modules=_targets(values.get("target_modules")),
        rank_pattern={_pattern(k): _rank(v, f"rank_pattern of {k[:80]!r}") for k, v in ranks.items()},
        alpha_pattern={_pattern(k): _alpha(v, f"alpha_pattern of {k[:80]!r}") for k, v in alphas.items()},
        base_model=_base_model(values.get("base_model_name_or_path")),
    )


def canonical_config(config: LoraConfig, ranks: Mapping[str, int]) -> bytes:
    """The same adapter said in one way only, as PEFT reads it; `ranks` maps full module names to ranks.

    Modules are named in full, and patterns hold only those that differ from the greatest rank and alpha.
    """
    alphas = {module: config.alpha_of(module) for module in ranks}
    rank, alpha = max(ranks.values()), max(alphas.values())
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": config.base_model,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "use_rslora": config.use_rslora,
        "target_modules": sorted(ranks),
        "rank_pattern": {module: r for module, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {module: _plain(a) for module, a in sorted(alphas.items()) if a != alpha},
    }
    return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _parse_json(data: bytes) -> dict[str, object]:
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"adapter_config.json has more than {MAX_CONFIG_BYTES} bytes")
    try:
        values = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise InvalidAdapter(f"adapter_config.json is no JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise InvalidAdapter("adapter_config.json is no JSON object")
    return values


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return values


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")


def _rank(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_RANK:
        raise InvalidAdapter(f"{name} is {_shown(value)}; must be a whole number from 1")
    return value


def _alpha(value: object, name: str) -> float:
    # Compared before it is converted: a whole number may be too large for a float.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MAX_ALPHA:
        raise InvalidAdapter(f"{name} is {_shown(value)}; must be a number above 0 to {_MAX_ALPHA:g}")
    return float(value)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    return repr(value)[:80]


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = values.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidAdapter(f"{name} is {_shown(found)}; must be an object of module names to numbers")
    if len(found) > _MAX_NAMES:
        raise InvalidAdapter(f"{name} names {len(found)} modules; at most {_MAX_NAMES} are allowed")
    return found


def _pattern(key: str) -> str:
    if _PATTERN.fullmatch(key) is None:
        raise InvalidAdapter(
            f"pattern {key[:80]!r}: only names of modules or their ends are supported, perhaps between "
            "^ and $; name every module"
        )
    return key


def _fits(pattern: str, module: str) -> bool:
    """As PEFT, where a pattern fits a whole name or, without ^, all behind a dot; here a dot is a dot."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


def _targets(value: object) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(target, str) for target in value):
        raise InvalidAdapter(f"target_modules is {_shown(value)}; must be a list of names, or one text")
    if len(value) > _MAX_NAMES:
        raise InvalidAdapter(f"target_modules names {len(value)}; at most {_MAX_NAMES} are allowed")
    return tuple(value) or None


def _base_model(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidAdapter(f"base_model_name_or_path is {_shown(value)}; must be a text")
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or None
