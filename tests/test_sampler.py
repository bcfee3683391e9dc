"""Laws of the sampling loop, with predictors whose answer is known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import CODES, a_canvas, always, generators, unsure
from torch import Tensor

from paella.canvas import Canvas
from paella.denoiser import Denoise, Logits
from paella.logits import draw, typical_keep
from paella.noise import RENOISE_SOURCES, level
from paella.sampler import LOWEST_TEMPERATURE, RENOISE_PLACES, SamplerSettings, draw_typical, guided, sample

PLAIN = SamplerSettings(steps=4, typical_mass=1.0, guidance=1.0)


def echo(tokens: Tensor, t: Tensor) -> Tensor:
    """A predictor that looks at its input, token by token: mostly the next token, at times another."""
    return 3 * torch.nn.functional.one_hot((tokens + 1) % CODES, CODES).permute(0, 3, 1, 2) + t[:, None, None, None]


def run(denoise: Denoise, canvas: Canvas, settings: SamplerSettings, *seeds: int) -> list[Tensor]:
    return list(sample(denoise, canvas, settings, generators(*seeds)))


# --- steps and times ---


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_times_run_down_in_equal_steps_and_never_reach_zero(steps: int, start: float) -> None:
    seen: list[list[float]] = []

    def denoise(tokens: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return unsure(tokens, t)

    outputs = run(denoise, a_canvas(0, 1, start=start), replace(PLAIN, steps=steps), 0, 1)
    assert len(outputs) == steps
    expected = [start * (steps - step) / steps for step in range(steps)]
    assert seen == [pytest.approx([t, t], abs=1e-6) for t in expected]


def test_nothing_is_left_to_do_at_start_zero() -> None:
    assert run(always(1), a_canvas(0, start=0.0), PLAIN, 0) == []


def test_one_step_is_one_draw_without_renoising() -> None:
    (only,) = run(always(7), a_canvas(0), replace(PLAIN, steps=1), 0)
    assert (only == 7).all()


def test_the_first_step_sees_the_canvas() -> None:
    canvas, seen = a_canvas(0), []

    def denoise(tokens: Tensor, t: Tensor) -> Tensor:
        seen.append(tokens.clone())
        return unsure(tokens, t)

    outputs = run(denoise, canvas, PLAIN, 0)
    assert torch.equal(seen[0], canvas.tokens)
    assert all(torch.equal(entered, left) for entered, left in zip(seen[1:], outputs[:-1], strict=True))


# --- what comes out ---


@pytest.mark.parametrize("renoise", RENOISE_SOURCES)
@pytest.mark.parametrize("mass", [0.2, 1.0])
def test_a_sure_predictor_fills_every_free_cell_and_frozen_ones_stay_at_every_step(renoise: str, mass: float) -> None:
    canvas = a_canvas(0, 1)
    frozen = torch.rand(canvas.tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    canvas = replace(canvas, frozen=frozen)
    outputs = run(always(7), canvas, replace(PLAIN, renoise=renoise, typical_mass=mass), 0, 1)
    for tokens in outputs:
        assert torch.equal(tokens[frozen], canvas.tokens[frozen])
    assert (outputs[-1][~frozen] == 7).all()


def test_all_frozen_changes_nothing() -> None:
    canvas = a_canvas(0)
    canvas = replace(canvas, frozen=torch.ones_like(canvas.frozen))
    assert all(torch.equal(tokens, canvas.tokens) for tokens in run(unsure, canvas, PLAIN, 0))


def test_the_predictor_sees_the_frozen_tokens() -> None:
    canvas = a_canvas(0)
    frozen = torch.zeros_like(canvas.frozen)
    frozen[:, :, :2] = True
    seen: list[Tensor] = []

    def denoise(tokens: Tensor, t: Tensor) -> Tensor:
        seen.append(tokens)
        return unsure(tokens, t)

    run(denoise, replace(canvas, frozen=frozen), PLAIN, 0)
    assert all(torch.equal(tokens[frozen], canvas.tokens[frozen]) for tokens in seen)


def test_the_canvas_is_left_as_it_was() -> None:
    canvas = a_canvas(0)
    before = canvas.tokens.clone()
    run(always(7), canvas, PLAIN, 0)
    assert torch.equal(canvas.tokens, before)


# --- renoising ---


def test_initial_renoising_yields_initial_or_drawn_tokens_in_their_shares() -> None:
    canvas = a_canvas(0, height=64, width=64)
    canvas = replace(canvas, tokens=canvas.tokens.masked_fill(canvas.tokens == 7, 6))  # so that 7 means drawn
    outputs = run(always(7), canvas, replace(PLAIN, steps=4), 0)
    for step, tokens in enumerate(outputs, 1):
        drawn = tokens == 7
        assert torch.equal(tokens[~drawn], canvas.tokens[~drawn])
        share = level(torch.tensor([1 - step / 4])).item()
        assert (~drawn).float().mean().item() == pytest.approx(share, abs=0.03)


def test_previous_renoising_yields_the_tokens_that_entered_the_step() -> None:
    canvas = a_canvas(0, height=32, width=32, start=0.6)
    turn = iter([always(3), always(7), always(9)])
    outputs = run(lambda tokens, t: next(turn)(tokens, t), canvas, replace(PLAIN, steps=3, renoise="previous"), 0)
    before = canvas.tokens
    for token, tokens in zip((3, 7, 9), outputs, strict=True):
        drawn = tokens == token
        assert torch.equal(tokens[~drawn], before[~drawn])
        before = tokens
    assert (outputs[0] == 3).any() and (outputs[0] != 3).any()


def test_fresh_renoising_is_uniform_over_the_codes() -> None:
    canvas = a_canvas(0, height=64, width=64)
    first = run(always(7), canvas, replace(PLAIN, steps=2, renoise="fresh"), 0)[0]
    counts = first.flatten().bincount(minlength=CODES).float()
    others = torch.cat([counts[:7], counts[8:]])
    expected = 64 * 64 * level(torch.tensor([0.5])).item() / CODES
    assert len(counts) == CODES
    torch.testing.assert_close(others, torch.full((CODES - 1,), expected), rtol=0.25, atol=0)
    assert ((first == canvas.tokens) & (first != 7)).float().mean() < 0.1  # not the initial tokens again


def sure_at_the_left(tokens: Tensor, t: Tensor) -> Tensor:
    """Token 7 everywhere, beyond doubt in the left half, likely in the right one."""
    logits = always(7)(tokens, t).float()
    logits[:, 7, :, tokens.shape[2] // 2 :] = logits[:, 6].max() + 6
    return logits


@pytest.mark.parametrize("frozen_rows", [0, 16])
def test_unsure_tokens_become_noise_first_and_in_the_same_share(
    monkeypatch: pytest.MonkeyPatch, frozen_rows: int
) -> None:
    monkeypatch.setattr("paella.logits.CHOICE_TEMPERATURE", 0.0)
    canvas = a_canvas(0, height=32, width=32)
    canvas = replace(canvas, tokens=canvas.tokens.masked_fill(canvas.tokens == 7, 6))
    frozen = canvas.frozen.clone()
    frozen[:, :frozen_rows] = True
    outputs = run(sure_at_the_left, replace(canvas, frozen=frozen), replace(PLAIN, steps=4, renoise_at="unsure"), 0)
    for step, tokens in enumerate(outputs[:-1], 1):
        noise = (tokens != 7)[:, frozen_rows:]
        share = level(torch.tensor([1 - step / 4])).item()
        assert noise.float().mean().item() == pytest.approx(share, abs=0.01)
        left, right = noise[:, :, :16].float().mean().item(), noise[:, :, 16:].float().mean().item()
        assert right == 1 or left == 0
        assert torch.equal(tokens[frozen], canvas.tokens[frozen])


# --- seeds ---


@pytest.mark.parametrize("renoise_at", RENOISE_PLACES)
@pytest.mark.parametrize("renoise", RENOISE_SOURCES)
def test_a_picture_depends_on_its_own_generator_alone(renoise: str, renoise_at: str) -> None:
    settings = replace(PLAIN, renoise=renoise, renoise_at=renoise_at, typical_mass=0.9)
    together = run(echo, a_canvas(0, 1, 2), settings, 0, 1, 2)
    for seed in range(3):
        alone = run(echo, a_canvas(seed), settings, seed)
        assert all(torch.equal(whole[seed : seed + 1], one) for whole, one in zip(together, alone, strict=True))
    assert not torch.equal(together[-1][0], together[-1][1])


def test_the_same_seed_gives_the_same_picture_and_another_another() -> None:
    first, again, other = (run(echo, a_canvas(0), PLAIN, seed)[-1] for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the filter and the temperature reach the draw ---


def two_thirds(tokens: Tensor, t: Tensor) -> Tensor:
    """Token 0 with probability 2/3, the others share the rest: a low typical mass keeps token 0 alone."""
    p = torch.full((CODES,), 1 / 3 / (CODES - 1))
    p[0] = 2 / 3
    return p.log()[None, :, None, None].expand(len(tokens), CODES, *tokens.shape[1:])


def test_a_low_typical_mass_leaves_the_most_typical_token() -> None:
    (filtered,) = run(two_thirds, a_canvas(0), replace(PLAIN, steps=1, typical_mass=0.2), 0)
    (free,) = run(two_thirds, a_canvas(0), replace(PLAIN, steps=1), 0)
    assert (filtered == 0).all()
    assert len(free.unique()) > 2


@pytest.mark.parametrize("min_tokens", [1, 3])
def test_each_position_is_drawn_from_its_typical_tokens_whether_they_are_one_or_more(min_tokens: int) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CODES, 9, 7, generator=g) * torch.linspace(0, 12, 63).view(9, 7)  # from unsure to sure
    uniform = torch.rand(2, 9, 7, generator=g)
    settings = SamplerSettings(typical_mass=0.8, temperature=0.7, min_tokens=min_tokens)
    rows = logits.permute(0, 2, 3, 1).reshape(-1, CODES)
    keep = typical_keep(rows, 0.8, min_tokens)
    one = keep.sum(1) == 1
    assert min_tokens > 1 or 0.2 < one.float().mean() < 0.8
    expected = draw((rows.masked_fill(~keep, -torch.inf) / 0.7).softmax(-1), uniform.flatten()).view(2, 9, 7)
    wanted = torch.rand(2, 9, 7, generator=g) < 0.7
    assert torch.equal(draw_typical(Logits(logits), settings, uniform, wanted)[wanted], expected[wanted])
    assert torch.equal(draw_typical(Logits(logits), settings, uniform, torch.ones_like(wanted)), expected)


@pytest.mark.parametrize(("renoise_at", "most"), [("random", 0.05), ("unsure", 1.0)])
def test_tokens_that_become_noise_are_not_drawn_where_that_is_known_before(
    renoise_at: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first of eight steps 2 % of all tokens stay, after the last all; frozen ones are never drawn."""
    wanted: list[Tensor] = []

    def drawn(logits: Logits, settings: SamplerSettings, uniform: Tensor, where: Tensor) -> Tensor:
        wanted.append(where)
        return draw_typical(logits, settings, uniform, where)

    monkeypatch.setattr("paella.sampler.draw_typical", drawn)
    canvas = a_canvas(0, height=40, width=40)
    canvas.frozen[:, :10] = True
    outputs = run(always(7), canvas, replace(PLAIN, steps=8, renoise_at=renoise_at), 0)
    assert all(not where[canvas.frozen].any() for where in wanted)
    shares = [where[~canvas.frozen].float().mean().item() for where in wanted]
    assert 0 < shares[0] <= most and shares[-1] == 1
    stays = [(tokens == 7)[where].float().mean().item() for where, tokens in zip(wanted, outputs, strict=True)]
    assert stays[-1] == 1 and (renoise_at == "unsure" or min(stays) == 1)


def test_min_tokens_reach_the_filter() -> None:
    settings = replace(PLAIN, steps=1, typical_mass=0.2, min_tokens=2)
    (tokens,) = run(two_thirds, a_canvas(0, height=40, width=40), settings, 0)
    assert tokens.unique().tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [0.05, LOWEST_TEMPERATURE])
def test_a_low_temperature_takes_the_likeliest(temperature: float) -> None:
    (tokens,) = run(two_thirds, a_canvas(0), replace(PLAIN, steps=1, temperature=temperature), 0)
    assert (tokens == 0).all()


def test_half_precision_logits_are_drawn_from_in_float32() -> None:
    plain = run(two_thirds, a_canvas(0), PLAIN, 0)
    half = run(lambda tokens, t: two_thirds(tokens, t).bfloat16(), a_canvas(0), PLAIN, 0)
    rounded = run(lambda tokens, t: two_thirds(tokens, t).bfloat16().float(), a_canvas(0), PLAIN, 0)
    assert plain[-1].dtype == half[-1].dtype == torch.int64
    assert all(torch.equal(one, other) for one, other in zip(half, rounded, strict=True))


# --- guidance ---


def conditioned(condition: Tensor) -> Denoise:
    """A predictor whose logits say what condition, tokens and time it was given."""

    def denoise(tokens: Tensor, t: Tensor) -> Tensor:
        return condition.sum(1)[:, None] * (1 + tokens[:, None]) + t[:, None, None, None]

    return denoise


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("null_batch", [1, 2])
def test_guidance_pairs_each_picture_with_the_null_condition(weight: float, null_batch: int) -> None:
    condition, null = torch.randn(2, 3, 1, 1), torch.randn(1, 3, 1, 1).expand(null_batch, 3, 1, 1)
    tokens, t = torch.randint(9, (2, 4, 4)), torch.tensor([0.3, 0.8])
    with_condition, without = conditioned(condition)(tokens, t), conditioned(null)(tokens, t)
    expected = without + weight * (with_condition - without)
    torch.testing.assert_close(guided(conditioned, condition, null, weight)(tokens, t), expected)


def test_guidance_takes_a_null_vector_beside_a_map() -> None:
    condition, null = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 1, 1)
    tokens, t = torch.randint(9, (2, 4, 4)), torch.ones(2)
    expected = conditioned(null)(tokens, t) + 3 * (conditioned(condition)(tokens, t) - conditioned(null)(tokens, t))
    torch.testing.assert_close(guided(conditioned, condition, null, 3.0)(tokens, t), expected)


def test_guidance_costs_one_call_a_step_and_none_without() -> None:
    batches: list[int] = []

    def counting(condition: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        inner = conditioned(condition)

        def denoise(tokens: Tensor, t: Tensor) -> Tensor:
            batches.append(len(tokens))
            return inner(tokens, t)

        return denoise

    condition, tokens, t = torch.randn(2, 3, 1, 1), torch.zeros(2, 4, 4, dtype=torch.int64), torch.ones(2)
    guided(counting, condition, torch.zeros(1, 3, 1, 1), 4.0)(tokens, t)
    guided(counting, condition, torch.zeros(1, 3, 1, 1), 1.0)(tokens, t)
    assert batches == [4, 2]


# --- settings ---


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("typical_mass", 0.0),
        ("typical_mass", 1.01),
        ("temperature", 0.0),
        ("temperature", 1e-31),
        ("temperature", float("inf")),
        ("renoise", "backwards"),
        ("min_tokens", 0),
    ],
)
def test_a_wrong_setting_is_named(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}:"):
        SamplerSettings(**{name: wrong})
