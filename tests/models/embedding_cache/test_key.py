"""Keys: equal for equal things alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import InvalidInput
from models.embedding_cache.key import EntryKeys
from models.text_encoder.protocol import Fingerprint

FINGERPRINT = Fingerprint("m", "w", "mean", True, "query: ", 4, 8, "float32")

# A small alphabet, so that the examples' parts run into each other.
TEXTS = st.text("ab:,\x00é", max_size=4)
PARAMETERS = st.dictionaries(TEXTS, st.one_of(st.none(), st.booleans(), st.integers(0, 2), TEXTS), max_size=2)
TUPLES = st.tuples(st.sampled_from(["m", "n"]), PARAMETERS, TEXTS, TEXTS)


def key_of(model: str, parameters: dict[str, object], prompt: str | None, text: str) -> bytes:
    return EntryKeys(replace(FINGERPRINT, model=model), parameters).many([text], prompt)[0]


def typed(value: object) -> object:
    """Python says True == 1; a key does not."""
    if isinstance(value, dict):
        return {name: (type(inner), inner) for name, inner in value.items()}
    return value


@given(TUPLES, TUPLES)
def test_keys_are_equal_for_equal_tuples_alone(one, other):
    same = tuple(map(typed, one)) == tuple(map(typed, other))
    assert (key_of(*one) == key_of(*other)) == same


def test_parts_that_run_into_each_other_differ():
    assert key_of("m", {}, "ab", "c") != key_of("m", {}, "a", "bc")
    assert key_of("m", {}, "", "x") != key_of("m", {}, "x", "")
    assert key_of("m", {"a": 1}, "", "") != key_of("m", {}, '{"a":1}', "")
    assert key_of("m", {"a": 1}, "", "") != key_of("m", {"a": "1"}, "", "")


def test_no_prompt_is_the_encoders_own():
    keys = EntryKeys(FINGERPRINT, {})
    assert keys.many(["a", "b"]) == keys.many(["a", "b"], "query: ") != keys.many(["a", "b"], "")


def test_every_field_of_the_fingerprint_counts():
    others = [
        replace(FINGERPRINT, **{name: value})
        for name, value in {
            "model": "n", "weights": "v", "pooling": "cls", "normalized": False, "prompt": "",
            "dimensions": 5, "max_tokens": 9, "dtype": "bfloat16",
        }.items()
    ]  # fmt: skip
    keys = [EntryKeys(each, {}).many(["a"], "p")[0] for each in (FINGERPRINT, *others)]
    assert len(set(keys)) == len(keys) == 9


def test_the_order_of_parameters_does_not_count():
    assert key_of("m", {"a": 1, "b": {"c": 2, "d": 3}}, "", "") == key_of(
        "m", {"b": {"d": 3, "c": 2}, "a": 1}, "", ""
    )


def test_keys_are_whole_digests_in_order():
    keys = EntryKeys(FINGERPRINT, {})
    texts = [f"text {n}" for n in range(100)] + ["text 3"]
    many = keys.many(texts)
    assert many == [keys.many([text])[0] for text in texts]
    assert {len(key) for key in many} == {32} and len(set(many)) == 100


def test_texts_are_not_normalised():
    keys = EntryKeys(FINGERPRINT, {}).many(["a", "A", " a", "a ", "é", "e\u0301"])
    assert len(set(keys)) == 6


@pytest.mark.parametrize(
    "parameters",
    [{"a": object()}, {"a": float("nan")}, {"a": {1: 2}}, {"a": [{1: 2}]}, {"a": "\ud800"}, {"a": b"x"}],
)
def test_parameters_that_json_cannot_tell_apart_are_refused(parameters):
    with pytest.raises(InvalidInput, match="key parameters"):
        EntryKeys(FINGERPRINT, parameters)


def test_surrogates_are_refused_by_place():
    keys = EntryKeys(FINGERPRINT, {})
    with pytest.raises(InvalidInput, match=r"text 1 .*U\+D800 at character 2"):
        keys.many(["fine", "ab\ud800"])
    with pytest.raises(InvalidInput, match="prompt"):
        keys.many(["fine"], "\udfff")


@given(st.lists(TEXTS, max_size=9), st.lists(st.integers(-10, 10) | st.slices(9), max_size=4))
def test_keys_on_demand_are_the_keys_in_whatever_order_asked_for(texts, wanted):
    keys = EntryKeys(FINGERPRINT, {})
    want, found = keys.many(texts), keys.on_demand(texts)
    assert len(found) == len(want)
    for place in wanted:
        if isinstance(place, slice) or -len(want) <= place < len(want):
            assert found[place] == want[place]
    assert list(found) == want
