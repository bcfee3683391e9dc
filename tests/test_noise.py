"""Laws of the forward process."""

import math

import torch

from paella.noise import RENOISE_SOURCES, add_noise, level


def looks_uniform(tokens: torch.Tensor, codes: int) -> bool:
    """Chi-square test: the statistic has mean N - 1 and variance 2·(N - 1) where the tokens are uniform."""
    counts = tokens.flatten().bincount(minlength=codes).double()
    expected = tokens.numel() / codes
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return len(counts) == codes and abs(statistic - (codes - 1)) < 5 * math.sqrt(2 * (codes - 1))


def a_batch(codes: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean tokens (all of one kind), noise tokens, and the random numbers that decide."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(codes, (4, 64, 64), generator=generator)
    return torch.full_like(noise, 3), noise, torch.rand(noise.shape, generator=generator)


def test_level_runs_from_nothing_to_everything() -> None:
    assert level(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


def test_level_grows_and_stays_a_share() -> None:
    for dtype in (torch.float32, torch.float64):
        s = level(torch.linspace(0, 1, 1001, dtype=dtype))
        assert s.dtype == torch.float32
        assert (s.diff() >= 0).all()
        assert (s[::20].diff() > 0).all()
        assert s.min() >= 0 and s.max() <= 1


def test_level_is_the_cosine_schedule() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(level(t).double(), (t * math.pi / 2).sin(), rtol=0, atol=1e-6)


def test_no_noise_returns_the_data() -> None:
    tokens, noise, uniform = a_batch()
    assert torch.equal(add_noise(tokens, torch.zeros(4), noise, uniform), tokens)


def test_full_noise_is_the_noise_and_uniform() -> None:
    tokens, noise, uniform = a_batch()
    noisy = add_noise(tokens, torch.ones(4), noise, uniform)
    assert torch.equal(noisy, noise)
    assert looks_uniform(noisy, 64)


def test_each_picture_has_its_own_share_of_noise() -> None:
    tokens, _, uniform = a_batch()
    t = torch.tensor([0.0, 0.2, 0.5, 0.9])
    share = (add_noise(tokens, t, tokens + 1, uniform) != tokens).float().mean((1, 2))
    torch.testing.assert_close(share, level(t), rtol=0, atol=0.03)


def test_renoise_sources_are_what_they_are_called() -> None:
    initial, previous, fresh = (torch.full((1, 2, 2), value) for value in (1, 2, 3))
    picked = {name: int(source(initial, previous, lambda: fresh)[0, 0, 0]) for name, source in RENOISE_SOURCES.items()}
    assert picked == {"initial": 1, "previous": 2, "fresh": 3}
