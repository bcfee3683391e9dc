"""A canvas refuses what does not fit together; the abilities that fill one in."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from paella.canvas import Canvas
from paella.edits import random_tokens, text_to_image


def parts(**changed: Any) -> dict[str, Any]:
    tokens = torch.zeros(2, 3, 5, dtype=torch.int64)
    return {"tokens": tokens, "frozen": tokens.bool(), "condition": torch.zeros(2, 4, 1, 1), "start": 1.0, **changed}


def test_one_place_or_a_map_is_a_condition() -> None:
    Canvas(**parts())
    Canvas(**parts(condition=torch.zeros(2, 4, 3, 5), start=0.0))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tokens", torch.zeros(3, 5, dtype=torch.int64)),
        ("frozen", torch.zeros(2, 5, 3, dtype=torch.bool)),
        ("condition", torch.zeros(2, 4)),
        ("condition", torch.zeros(1, 4, 1, 1)),
        ("start", 1.1),
        ("start", -0.1),
    ],
)
def test_what_does_not_fit_is_named(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"canvas: {name}"):
        Canvas(**parts(**{name: wrong}))


def test_a_canvas_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Canvas(**parts()).start = 0.5  # type: ignore[misc]


def test_random_tokens_are_each_generator_s_own() -> None:
    together = random_tokens([torch.Generator().manual_seed(seed) for seed in (5, 6)], 4, 7, 32)
    alone = random_tokens([torch.Generator().manual_seed(6)], 4, 7, 32)
    assert together.shape == (2, 4, 7)
    assert torch.equal(together[1:], alone)
    assert not torch.equal(together[0], together[1])
    many = random_tokens([torch.Generator().manual_seed(0)], 64, 64, 32)
    assert many.unique().tolist() == list(range(32))


def test_text_to_image_freezes_nothing_and_starts_from_noise() -> None:
    tokens, condition = torch.randint(9, (2, 3, 5)), torch.randn(2, 4, 1, 1)
    canvas = text_to_image(tokens, condition)
    assert torch.equal(canvas.tokens, tokens)
    assert not canvas.frozen.any()
    assert torch.equal(canvas.condition, condition)
    assert canvas.start == 1
