"""Laws of MaskGIT's masking and of its sampler, with predictors whose answer is known."""

from dataclasses import replace

import pytest
import torch
from fakes import CODES, a_canvas, always, generators, unsure
from torch import Tensor

from paella import logits
from paella.baselines.maskgit import MaskGIT, lowest
from paella.canvas import Canvas
from paella.denoiser import Denoise
from paella.noise import level
from paella.sampler import SamplerSettings

MASK = CODES
METHOD = MaskGIT(MASK)
PLAIN = SamplerSettings(steps=4, typical_mass=1.0, guidance=1.0)


def half_frozen(canvas: Canvas) -> Canvas:
    uniform = torch.rand(canvas.tokens.shape, generator=torch.Generator().manual_seed(2))
    return replace(canvas, frozen=uniform < 0.4)


def neighbours(tokens: Tensor, t: Tensor) -> Tensor:
    """A predictor that looks at its input: a place is likely to have its left neighbour's token, once this is known."""
    left = torch.nn.functional.one_hot(tokens.roll(1, dims=2), CODES + 1)[..., :CODES]
    return 4.0 * left.permute(0, 3, 1, 2) + t[:, None, None, None]


class Watched:
    """A predictor that notes what it is shown."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.tokens, self.times = denoise, list[Tensor](), list[list[float]]()

    def __call__(self, tokens: Tensor, t: Tensor) -> Tensor:
        self.tokens.append(tokens.clone())
        self.times.append(t.tolist())
        return self.denoise(tokens, t)


def run(denoise: Denoise, canvas: Canvas, settings: SamplerSettings, *seeds: int) -> list[Tensor]:
    return list(METHOD.sample(denoise, canvas, settings, generators(*seeds)))


# --- sampling ---


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_there_are_t_steps_at_evenly_spaced_times(steps: int) -> None:
    watched = Watched(unsure)
    assert len(run(watched, a_canvas(0, 1), replace(PLAIN, steps=steps), 0, 1)) == steps
    assert watched.times == [pytest.approx([1 - step / steps] * 2) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_a_sure_predictor_fills_every_free_cell_and_frozen_ones_stay_at_every_step(steps: int) -> None:
    canvas = half_frozen(a_canvas(0, 1))
    outputs = run(always(7), canvas, replace(PLAIN, steps=steps), 0, 1)
    for tokens in outputs:
        assert torch.equal(tokens[canvas.frozen], canvas.tokens[canvas.frozen])
        assert (tokens[~canvas.frozen] == 7).all()  # hidden places show what was drawn


def test_the_predictor_sees_frozen_tokens_and_masks_and_nothing_of_the_canvas_s_noise() -> None:
    canvas = half_frozen(a_canvas(0))
    watched = Watched(unsure)
    run(watched, canvas, PLAIN, 0)
    assert torch.equal(watched.tokens[0], canvas.tokens.masked_fill(~canvas.frozen, MASK))
    other = replace(canvas, tokens=torch.where(canvas.frozen, canvas.tokens, 3))
    assert all(map(torch.equal, run(neighbours, canvas, PLAIN, 0), run(neighbours, other, PLAIN, 0)))


def test_the_mask_token_is_never_yielded_and_what_was_kept_stays_for_good() -> None:
    watched = Watched(neighbours)
    outputs = run(watched, half_frozen(a_canvas(0, 1)), replace(PLAIN, steps=6), 0, 1)
    assert all(tokens.min() >= 0 and tokens.max() < CODES for tokens in outputs)
    for yielded, shown in zip(outputs, watched.tokens[1:], strict=False):
        assert (shown == MASK).any()
        kept = shown != MASK
        assert torch.equal(shown[kept], yielded[kept])
        assert torch.equal(shown[kept], outputs[-1][kept])


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_the_number_of_masks_follows_the_cosine_of_the_free_cells(steps: int) -> None:
    canvas = half_frozen(a_canvas(0, 1, height=16, width=16))
    free = (~canvas.frozen).sum((1, 2))
    watched = Watched(neighbours)
    run(watched, canvas, replace(PLAIN, steps=steps), 0, 1)
    for step, tokens in enumerate(watched.tokens):
        share = level(torch.tensor(1 - step / steps))
        assert torch.equal((tokens == MASK).sum((1, 2)), (share * free).floor().long())


def test_each_step_keeps_one_more_token_even_where_the_cosine_is_flat() -> None:
    watched = Watched(unsure)
    run(watched, a_canvas(0, height=2, width=5), replace(PLAIN, steps=50), 0)
    counts = [int((tokens == MASK).sum()) for tokens in watched.tokens]
    assert counts[:11] == list(range(10, -1, -1)) and not any(counts[11:])


def sure_on_the_left(tokens: Tensor, t: Tensor) -> Tensor:
    """Token 7 at the left edge with probability 0.96, and less and less to the right, where all are alike."""
    logits = torch.zeros(len(tokens), CODES, *tokens.shape[1:])
    logits[:, 7] = torch.linspace(6, 0, tokens.shape[2])
    return logits


COLD = replace(PLAIN, temperature=0.02)  # draws token 7 wherever it is any likelier


def test_the_most_confident_are_kept_as_far_as_the_noise_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(scale: float) -> Tensor:
        monkeypatch.setattr(logits, "CHOICE_TEMPERATURE", scale)
        watched = Watched(sure_on_the_left)
        run(watched, a_canvas(0, height=1, width=40), replace(COLD, steps=3), 0)
        return watched.tokens[1][0, 0] != MASK

    count = 40 - int(40 * level(torch.tensor(2 / 3)))
    assert kept(0.0).tolist() == [True] * count + [False] * (40 - count)
    noisy = kept(4.5)
    assert noisy.sum() == count and not noisy[:count].all()


def test_the_noise_on_confidences_falls_to_zero() -> None:
    """How often a token that a step keeps is surer than one that it hides again: early half by chance, late always."""
    surer: list[list[float]] = []
    for seed in range(20):
        watched = Watched(sure_on_the_left)
        run(watched, a_canvas(0, height=1, width=200), replace(COLD, steps=20), seed)
        hidden = [(tokens[0, 0] == MASK) for tokens in watched.tokens]
        surer.append([])
        for step in (2, 18):
            before, after = hidden[step], hidden[step + 1]
            kept, again = (before & ~after).nonzero(), after.nonzero()
            surer[-1].append((kept < again.T).float().mean().item())
    early, late = torch.tensor(surer).mean(0).tolist()
    assert 0.5 < early < 0.75 and late > 0.9


def test_a_picture_depends_on_its_own_generator_alone() -> None:
    settings = replace(PLAIN, typical_mass=0.9)
    together = run(neighbours, a_canvas(0, 1, 2), settings, 0, 1, 2)
    for seed in range(3):
        alone = run(neighbours, a_canvas(seed), settings, seed)
        assert all(torch.equal(whole[seed : seed + 1], one) for whole, one in zip(together, alone, strict=True))
    assert not torch.equal(together[-1][0], together[-1][1])


def test_filter_and_temperature_reach_the_draw() -> None:
    def two_thirds(tokens: Tensor, t: Tensor) -> Tensor:
        p = torch.full((CODES,), 1 / 3 / (CODES - 1))
        p[0] = 2 / 3
        return p.log()[None, :, None, None].expand(len(tokens), CODES, *tokens.shape[1:])

    free, filtered, cold = (
        run(two_thirds, a_canvas(0), replace(PLAIN, **change), 0)[-1]
        for change in ({}, {"typical_mass": 0.2}, {"temperature": 0.05})
    )
    assert len(free.unique()) > 2
    assert (filtered == 0).all() and (cold == 0).all()


def test_all_frozen_or_nothing_left_changes_nothing() -> None:
    canvas = a_canvas(0)
    frozen = replace(canvas, frozen=torch.ones_like(canvas.frozen))
    assert all(torch.equal(tokens, canvas.tokens) for tokens in run(unsure, frozen, PLAIN, 0))
    assert run(unsure, replace(canvas, start=0.0), PLAIN, 0) == []


def test_a_start_from_noisy_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^start: must be 0 or 1 .*not 0\.5"):
        run(unsure, replace(a_canvas(0), start=0.5), PLAIN, 0)


# --- masking in training ---


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_training_hides_the_cosine_s_share_at_places_that_the_uniform_numbers_choose(t: float) -> None:
    tokens, uniform = torch.randint(CODES, (3, 7, 9)), torch.rand(3, 7, 9)
    noisy = METHOD.corrupt(tokens, torch.full((3,), t), tokens, uniform)
    hidden = METHOD.counted(noisy)
    expected = max(1, int((level(torch.tensor([t])) * 63).ceil()))
    assert (hidden.sum((1, 2)) == expected).all()
    assert torch.equal(noisy[~hidden], tokens[~hidden]) and (noisy[hidden] == MASK).all()
    for one, numbers in zip(hidden, uniform, strict=True):
        assert one.all() or numbers[one].max() < numbers[~one].min()


def test_the_lowest_are_as_many_as_asked_for_in_each_picture() -> None:
    scores = torch.tensor([[[3.0, 1.0], [2.0, 1.0]], [[0.0, torch.inf], [-torch.inf, 5.0]]])
    assert lowest(scores, torch.tensor([1.0, 3.0])).tolist() == [
        [[False, True], [False, False]],
        [[True, False], [True, True]],
    ]
    assert not lowest(scores, torch.tensor([0.0, -1.0])).any()
