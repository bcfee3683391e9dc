"""Laws of guidance, the locally typical filter and the draw."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paella import logits as of_logits
from paella.logits import certain, draw, entropy, guide, typical_keep, typical_weights


def slow_typical_keep(logits: torch.Tensor, mass: float, min_tokens: int) -> torch.Tensor:
    """The definition, one row and one token at a time."""
    keep = torch.zeros(logits.shape, dtype=torch.bool)
    for row, log_p in enumerate(logits.float().log_softmax(-1).tolist()):
        entropy = -sum(math.exp(x) * x for x in log_p if x > -math.inf)
        ranked = sorted(range(len(log_p)), key=lambda token: abs(-log_p[token] - entropy))  # stable, as ours must be
        total = 0.0
        for rank, token in enumerate(ranked):
            if total >= mass and rank >= min_tokens:
                break
            keep[row, token] = True
            total += math.exp(log_p[token])
    return keep


def random_logits(rows: int = 40, codes: int = 50, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, codes, generator=torch.Generator().manual_seed(seed))


# --- guidance ---


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional() -> None:
    conditional, unconditional = random_logits(seed=1), random_logits(seed=2)
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


def test_guidance_goes_on_along_the_line() -> None:
    conditional, unconditional = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert guide(conditional, unconditional, 4.0).tolist() == [[9.0, -2.0]]
    assert guide(conditional, unconditional, -1.0).tolist() == [[-1.0, 3.0]]


@pytest.mark.parametrize("weight", [5.0, -1.5])
def test_guidance_in_half_precision_rounds_once(weight: float) -> None:
    both = [random_logits(seed=seed).bfloat16() for seed in (1, 2)]
    exact = guide(*(logits.double() for logits in both), weight)
    torch.testing.assert_close(guide(*both, weight).double(), exact, rtol=2**-8, atol=1e-2)


# --- entropy ---


def test_entropy_makes_nothing_as_large_as_the_logits() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    logits = random_logits(2 * 8 * 5).view(2, 8, 5, 50).permute(0, 3, 1, 2).bfloat16()
    with Watch():
        found = entropy(logits)
    assert 0 < largest <= logits.numel() / 8
    p = logits.double().softmax(1)
    torch.testing.assert_close(found.double(), -(p * p.log()).sum(1), rtol=1e-4, atol=1e-6)


# --- the locally typical filter ---


@pytest.mark.parametrize("min_tokens", [1, 4, 50])
@pytest.mark.parametrize("mass", [0.01, 0.2, 0.5, 0.95])
def test_typical_keep_agrees_with_the_definition(mass: float, min_tokens: int) -> None:
    logits = random_logits()
    assert torch.equal(typical_keep(logits, mass, min_tokens), slow_typical_keep(logits, mass, min_tokens))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 200.0])
@pytest.mark.parametrize("codes", [1, 2, 2000])
def test_selecting_few_keeps_what_sorting_all_keeps(codes: int, scale: float) -> None:
    logits = random_logits(24, codes, scale).bfloat16().float()  # rounded: many ties
    logits[::5, ::2] = -torch.inf if codes > 1 else 0
    p = logits.softmax(-1)
    distance = (p.log() - p.mul(p.log()).nansum(-1, keepdim=True)).abs().nan_to_num(torch.inf)
    for mass in (1e-6, 0.2, 0.9, 1 - 1e-7, 1 - 1e-12):
        for min_tokens in (1, 3, 1999, 10_000):
            both = (keep(p, distance, mass, min_tokens) for keep in (of_logits._selected, of_logits._ranked))
            assert torch.equal(*both), (mass, min_tokens)


@pytest.mark.parametrize("mass", [0.2, 0.6])
def test_ties_go_to_the_lower_token(mass: float) -> None:
    logits = torch.zeros(1, 16)  # every token is as typical as any other, with probability 1/16 exactly
    kept = typical_keep(logits, mass)[0].nonzero()[:, 0].tolist()
    assert kept == list(range(math.ceil(mass * 16)))
    assert torch.equal(typical_keep(logits, mass), slow_typical_keep(logits, mass, 1))


def test_impossible_tokens_neither_count_nor_stay() -> None:
    logits = random_logits()
    logits[:, ::3] = -torch.inf
    for mass in (0.2, 0.9):
        keep = typical_keep(logits, mass)
        assert not keep[:, ::3].any()
        assert torch.equal(keep, slow_typical_keep(logits, mass, 1))


def test_extreme_logits_keep_what_is_certain() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 3e38, 0.0], [-torch.inf, -torch.inf, 5.0]])
    for mass in (0.2, 0.95):
        assert typical_keep(logits, mass).tolist() == [[True, False, False], [False, True, False], [False, False, True]]


def test_adding_a_constant_changes_nothing() -> None:
    logits = random_logits()
    assert torch.equal(typical_keep(logits, 0.3), typical_keep(logits + 64, 0.3))


def test_the_work_is_done_in_float32() -> None:
    logits = random_logits().bfloat16()
    assert torch.equal(typical_keep(logits, 0.2), typical_keep(logits.float(), 0.2))


def test_mass_one_keeps_everything() -> None:
    logits = random_logits()
    logits[:, 0] = -100
    assert typical_keep(logits, 1.0).all()


@pytest.mark.parametrize("codes", [1, 2, 3, 40, 2000])
@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 1.0])
def test_a_certain_token_is_all_that_is_kept(codes: int, mass: float) -> None:
    scales = torch.linspace(0, 30, 400)[:, None]
    logits = random_logits(400, codes, 1.0) * scales
    logits[::7, 1:] = -torch.inf
    known, keep = certain(logits.log_softmax(-1), mass), typical_keep(logits, mass)
    assert torch.equal(keep[known], torch.nn.functional.one_hot(logits[known].argmax(-1), codes).bool())
    assert known.any() == (mass < 1)


@pytest.mark.parametrize("mass", [0.2, 0.9])
def test_what_a_model_is_sure_of_is_found_to_be_certain(mass: float) -> None:
    """With a smoothed label the rest is spread evenly: of 1,024 codes 0.92 is enough, and 0.6 is not."""
    for p, expected in ((0.92, True), (0.6, False)):
        logits = torch.full((1, 1024), math.log((1 - p) / 1023))
        logits[0, 17] = math.log(p)
        assert certain(logits.log_softmax(-1), mass).item() == expected


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9])
def test_the_kept_set_reaches_the_mass_and_no_smaller_one_of_its_order_does(mass: float) -> None:
    logits = random_logits()
    p = logits.softmax(-1)
    keep = typical_keep(logits, mass)
    assert ((p * keep).sum(-1) >= mass - 1e-6).all()
    surprise = -p.log()
    distance = (surprise - (p * surprise).sum(-1, keepdim=True)).abs()
    last = distance.masked_fill(~keep, -1).argmax(-1, keepdim=True)
    assert ((p * keep.scatter(-1, last, False)).sum(-1) < mass).all()


# --- the draw ---


def drawn(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    return draw(typical_weights(logits.log_softmax(-1), 1.0, 1, temperature), uniform)


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("min_tokens", [1, 4])
@pytest.mark.parametrize("mass", [0.2, 0.9, 1.0])
def test_weights_are_those_of_the_softmax_where_tokens_are_kept_and_else_nothing(
    mass: float, min_tokens: int, temperature: float
) -> None:
    logits = random_logits()
    logits[:, ::3] = -torch.inf
    weights = typical_weights(logits.log_softmax(-1), mass, min_tokens, temperature)
    keep = slow_typical_keep(logits, mass, min_tokens) if mass < 1 else torch.ones_like(logits, dtype=torch.bool)
    assert not weights[~keep].any()
    expected = (logits.masked_fill(~keep, -torch.inf).double() / temperature).softmax(-1)
    found = weights.double() / weights.double().sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("codes", [5, 10, 100])
def test_what_is_drawn_from_is_what_is_kept_at_a_tie_too(codes: int) -> None:
    logits = torch.zeros(1, codes)
    for mass in torch.arange(1, 10).div(10).tolist():
        weights = typical_weights(logits.log_softmax(-1), mass, 1, 1.0)
        assert torch.equal(weights > 0, typical_keep(logits, mass)), mass


@pytest.mark.parametrize("codes", [1, 7, 64, 130, 8192])
def test_drawing_in_two_steps_finds_what_adding_up_the_row_finds(codes: int) -> None:
    g = torch.Generator().manual_seed(codes)
    weights = (torch.randint(0, 8, (500, codes), generator=g) - 4).clamp(min=0).float()  # sums without rounding
    weights[:, -1] += weights.sum(-1) == 0
    uniform = torch.rand(500, generator=g)
    cumulative = weights.cumsum(-1)
    expected = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(draw(weights, uniform), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(temperature: float) -> None:
    logits, count = random_logits(1, 8, scale=1.0)[0], 200_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(3))
    seen = drawn(logits.expand(count, 8), temperature, uniform).bincount(minlength=8).double()
    expected = (logits / temperature).softmax(-1).double() * count
    statistic = ((seen - expected) ** 2 / expected).sum().item()  # chi-square with 7 degrees of freedom
    assert statistic < 7 + 5 * math.sqrt(14)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = random_logits(2000, 9)
    logits[:, [0, 4, 8]] = -torch.inf
    below_one = 1 - 2**-24
    for uniform in (torch.zeros(2000), torch.full((2000,), below_one), torch.rand(2000)):
        tokens = drawn(logits, 1.0, uniform)
        assert not torch.isin(tokens, torch.tensor([0, 4, 8])).any()


def test_the_ends_of_uniform_give_the_first_and_the_last_possible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, 0.5, -torch.inf]])
    assert drawn(logits, 1.0, torch.tensor([0.0])).item() == 1
    assert drawn(logits, 1.0, torch.tensor([1 - 2**-24])).item() == 3


def test_uniform_just_below_one_is_safe_with_many_codes() -> None:
    logits = random_logits(500, 8192, scale=5.0)
    logits[:, -1] = -torch.inf
    assert (drawn(logits, 1.0, torch.full((500,), 1 - 2**-24)) < 8191).all()


def test_a_draw_finds_its_token_among_many_groups() -> None:
    weights = torch.zeros(3, 256)
    weights[:, 100], weights[:, 140] = 1e-30, 3e-30  # the first and the last group hold nothing
    assert draw(weights, torch.tensor([0.0, 0.26, 1 - 2**-24])).tolist() == [100, 140, 140]


def test_draw_keeps_the_shape_and_each_row_its_own_number() -> None:
    logits = torch.zeros(2, 3, 4, 10)
    uniform = (torch.arange(24).view(2, 3, 4) % 10 + 0.5) / 10
    tokens = drawn(logits, 1.0, uniform)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.arange(24).view(2, 3, 4) % 10)


def test_a_low_temperature_takes_the_likeliest() -> None:
    logits = random_logits()
    assert torch.equal(drawn(logits, 1e-3, torch.full((40,), 0.5)), logits.argmax(-1))
