"""From logits to tokens, for a batch whose rows each ask for something else.

Every filter is turned into one threshold per row on the row's scores: top_k gives the k-th largest, top_p the
smallest of the nucleus, min_p a distance below the largest. The draw is then over what is not below it, in
the vocabulary's order, by the inverse of the cumulative distribution: one uniform number per row and step.
Only values are sorted, never indices, and only rows with a filter pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.language_model.protocol import MAX_LOGPROBS, Sampling

NOT_FINITE = -1
"""The `token_id` of a row whose logits hold NaN or infinity: there is nothing to choose from."""

_MIN_TEMPERATURE = 1e-6  # below it float32 would divide by zero; above zero, yet only exact ties are left


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A row's next token. `token_id` is `NOT_FINITE` (-1) when the row's logits were NaN or infinite: the
    caller fails that request; the other rows of the step are good.
    """

    token_id: int
    logprob: float | None = None
    """Of the model's own distribution (log-softmax of the raw logits); None unless `Sampling.logprobs`."""
    top: tuple[tuple[int, float], ...] = ()
    """The `Sampling.logprobs` most likely tokens and their log-probabilities, best first."""


class RowSampler:
    """What one request's choice of tokens remembers: its random numbers, and the tokens it has seen.

    A number drawn for a step counts as used only when the step's token is accepted, at the end of `sample`.
    So a step that ran out of memory, and is repeated, gives the token it would have given.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: Sequence[int], vocab_size: int) -> None:
        """`vocab_size` is the width of the logits, at least the tokenizer's."""
        self.sampling = sampling
        self.vocab_size = vocab_size
        seed = sampling.seed
        # PCG64 takes no negative seeds: two's complement keeps them apart from the others.
        self._random = np.random.Generator(np.random.PCG64(None if seed is None else seed % (1 << 64)))
        self._uniform: float | None = None
        self._seen: Tensor | None = None
        self._prompt_tokens = tuple(prompt_tokens) if self.penalised else ()

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return self.sampling.repetition_penalty != 1.0

    def uniform(self) -> float:
        """The step's number in [0, 1), float64; the same until the step's token is accepted."""
        if self._uniform is None:
            self._uniform = float(self._random.random())
        return self._uniform

    def seen(self, device: torch.device) -> Tensor:
        """Which tokens the penalty applies to: bool [vocab_size], of prompt and answer so far."""
        if self._seen is None or self._seen.device != device:
            before = self._seen
            if before is None:
                before = torch.zeros(self.vocab_size, dtype=torch.bool)
                before[torch.tensor(self._prompt_tokens, dtype=torch.long)] = True
                self._prompt_tokens = ()
            self._seen = before.to(device)
        return self._seen

    def accept(self, token_id: int) -> None:
        """The step is done and gave this token."""
        self._uniform = None
        if self._seen is not None:
            self._seen[token_id] = True


def sample(logits: Tensor, rows: Sequence[RowSampler]) -> list[SampledToken]:
    """The next token of every row.

    Repetition penalty, temperature, top_k, top_p, min_p in this order, as transformers' `generate`. Tokens
    with equal scores at the edge of top_k or of the nucleus are all kept (transformers keeps all at top_k's,
    and some at the nucleus's, as its sort falls). Temperature 0 takes the first of the largest, as
    `torch.argmax`.

    A row's token depends on its own logits, sampler and nothing else: on the CPU bit for bit the same alone
    and in any batch. On a GPU prefix sums may be taken in another order for one row than for many: equal but
    for the rounding of float64.

    Shapes:
        logits: [n, V], n == len(rows), any floating type, any device; not changed. -inf is a token that
            cannot come; a row with NaN, with +inf, or with nothing but -inf gives `NOT_FINITE`.

    Complexity: O(nV), and a sort of V values for rows with top_p and no top_k.
    """
    if logits.dim() != 2 or logits.shape[0] != len(rows):
        raise ValueError(f"logits are {list(logits.shape)} for {len(rows)} rows")
    if not rows:
        return []
    raw = logits
    penalised = [i for i, row in enumerate(rows) if row.penalised]
    if penalised:
        logits = _penalise(logits.float(), penalised, rows)
    best, greedy_tokens = logits.max(dim=-1)  # NaN wins, so the largest tells whether the row is sound
    tokens = greedy_tokens.tolist()
    sound = torch.isfinite(best).tolist()

    drawn = [i for i, row in enumerate(rows) if not row.greedy and sound[i]]
    if drawn:
        scores = _take(logits, drawn).float() - _take(best, drawn).float().unsqueeze(1)
        for i, token in zip(drawn, _draw(scores, [rows[i] for i in drawn]), strict=True):
            tokens[i] = token

    logprobs: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = {}
    explained = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None and sound[i]]
    if explained:
        logprobs = _explain(raw, explained, tokens, rows)

    sampled = []
    for i, row in enumerate(rows):
        if not sound[i]:
            sampled.append(SampledToken(NOT_FINITE))
            continue
        row.accept(tokens[i])
        sampled.append(SampledToken(tokens[i], *logprobs.get(i, (None, ()))))
    return sampled


def _take(values: Tensor, indices: list[int]) -> Tensor:
    """Rows of a tensor; the tensor itself when it is all of them."""
    if len(indices) == values.shape[0]:
        return values
    return values[torch.tensor(indices, device=values.device)]


def _penalise(logits: Tensor, which: list[int], rows: Sequence[RowSampler]) -> Tensor:
    """Scores of tokens seen, divided by the penalty if positive and multiplied if negative (Keskar 2019)."""
    seen = torch.stack([rows[i].seen(logits.device) for i in which])
    penalty = _column([rows[i].sampling.repetition_penalty for i in which], logits)
    part = _take(logits, which)
    part = torch.where(seen, torch.where(part < 0, part * penalty, part / penalty), part)
    if len(which) == len(rows):
        return part
    return logits.index_copy(0, torch.tensor(which, device=logits.device), part)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _draw(scores: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    """One token per row. `scores`: float32 [n, V], the largest of each row 0."""
    if any(row.sampling.temperature != 1.0 for row in rows):
        scores = scores / _column([max(row.sampling.temperature, _MIN_TEMPERATURE) for row in rows], scores)
    cumulative = filtered_weights(scores, [row.sampling for row in rows]).double().cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = torch.tensor([row.uniform() for row in rows], dtype=torch.float64, device=scores.device)
    # u < 1, but u * total may round up to total, beyond the last token.
    target = torch.minimum(uniform.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens: list[int] = torch.searchsorted(cumulative, target, right=True).squeeze(1).tolist()
    return tokens


def filtered_weights(scores: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """exp(scores), and 0 for the tokens that top_k, top_p and min_p leave out.

    Args:
        scores: float32 [n, V], after penalty and temperature, the largest of each row 0. Not changed.
    """
    weights = scores.exp()
    top_k = [s.top_k if s.top_k < scores.shape[1] else 0 for s in samplings]
    top_p = [s.top_p for s in samplings]
    filtered = [i for i, s in enumerate(samplings) if top_k[i] or s.top_p < 1.0 or s.min_p > 0.0]
    if not filtered:
        return weights
    threshold = _column([math.log(s.min_p) if s.min_p > 0.0 else -math.inf for s in samplings], scores)
    limited = [i for i in range(len(samplings)) if top_k[i]]
    if limited:
        edge = _limited_edge(_take(scores, limited), [top_k[i] for i in limited], [top_p[i] for i in limited])
        _raise(threshold, limited, edge)
    unlimited = [i for i in range(len(samplings)) if not top_k[i] and top_p[i] < 1.0]
    if unlimited:
        _raise(threshold, unlimited, _nucleus_edge(_take(scores, unlimited), [top_p[i] for i in unlimited]))
    # Zeros are put into the weights, as exp(-inf) takes many times longer than exp of a number.
    part = _take(weights, filtered).masked_fill(_take(scores, filtered) < _take(threshold, filtered), 0.0)
    if len(filtered) == len(samplings):
        return part
    return weights.index_copy(0, torch.tensor(filtered, device=scores.device), part)


def _raise(threshold: Tensor, which: list[int], edge: Tensor) -> None:
    index = torch.tensor(which, device=threshold.device)
    threshold[index] = torch.maximum(threshold[index], edge)


def _limited_edge(scores: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """The smallest score that top_k and then top_p keep, [n, 1]."""
    largest = scores.topk(max(top_k), dim=-1).values
    last = torch.tensor([k - 1 for k in top_k], device=scores.device).unsqueeze(1)
    edge = largest.gather(1, last)
    if all(p == 1.0 for p in top_p):
        return edge
    cumulative = largest.exp().double().cumsum(-1)
    # The nucleus is a share of all that top_k left: also of those that are equal at its edge.
    ties = (scores >= edge).sum(dim=-1, keepdim=True) - (last + 1)
    mass = cumulative.gather(1, last) + ties * edge.exp().double()
    return torch.maximum(edge, _edge(largest, cumulative, mass, top_p))


def _nucleus_edge(scores: Tensor, top_p: Sequence[float]) -> Tensor:
    """The smallest score that top_p keeps, [n, 1]."""
    if scores.device.type == "cpu":  # numpy sorts with vector instructions: 20 times as fast as torch
        ordered = torch.from_numpy(np.sort(scores.numpy(), axis=-1)).flip(-1)
    else:
        ordered = scores.sort(dim=-1, descending=True).values
    cumulative = ordered.exp().double().cumsum(-1)
    return _edge(ordered, cumulative, cumulative[:, -1:], top_p)


def _edge(ordered: Tensor, cumulative: Tensor, mass: Tensor, top_p: Sequence[float]) -> Tensor:
    """The first of the descending scores [n, m] that together with those before it weighs `top_p * mass`."""
    before = (cumulative < mass * _column(top_p, mass)).sum(dim=-1, keepdim=True)
    return ordered.gather(1, before.clamp(max=ordered.shape[1] - 1))


def _explain(
    raw: Tensor, which: list[int], tokens: list[int], rows: Sequence[RowSampler]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """The log-probability of each row's token, and its alternatives."""
    logprobs = torch.log_softmax(_take(raw, which).float(), dim=-1)
    chosen = logprobs.gather(1, torch.tensor([[tokens[i]] for i in which], device=raw.device))
    # Always as many, so that the order of equal ones does not depend on what neighbours ask for.
    values, ids = logprobs.topk(min(MAX_LOGPROBS, raw.shape[1]), dim=-1)
    explained = {}
    for i, own, row_values, row_ids in zip(
        which, chosen.squeeze(1).tolist(), values.tolist(), ids.tolist(), strict=True
    ):
        count = rows[i].sampling.logprobs or 0
        explained[i] = (own, tuple(zip(row_ids[:count], row_values[:count], strict=True)))
    return explained
