"""Laws of the Transformer token predictor."""

import pytest
import torch
import torch.nn.functional as F
from fakes import inputs, randomised

from paella.baselines.transformer import TransformerConfig, TransformerPredictor, resized

CONFIG = TransformerConfig(num_labels=20, width=16, c_clip=6, c_r=5, layers=2, heads=4, grid=4)


@pytest.fixture(scope="module")
def predictor() -> TransformerPredictor:
    return randomised(lambda: TransformerPredictor(CONFIG))


def test_a_map_of_another_size_is_resized_to_the_grid(predictor: TransformerPredictor) -> None:
    tokens, _, t = inputs(4, 4)
    condition = torch.randn(2, 6, 3, 7, generator=torch.Generator().manual_seed(1))
    expected = predictor(tokens, F.interpolate(condition, size=(4, 4), mode="bilinear"), t)
    torch.testing.assert_close(predictor(tokens, condition, t), expected, rtol=1e-4, atol=1e-4)


def test_positions_matter(predictor: TransformerPredictor) -> None:
    tokens, condition, t = inputs(4, 4)
    alike = predictor(torch.zeros_like(tokens), condition, t).flatten(2)  # nothing but positions tells these apart
    assert torch.pdist(alike[0].T).min() > 1e-3


def without(predictor: TransformerPredictor, *tables: str) -> TransformerPredictor:
    """A copy that does not know its rows, or columns."""
    blind = TransformerPredictor(CONFIG).eval().requires_grad_(False)
    blind.load_state_dict(predictor.state_dict())
    for table in tables:
        blind.get_submodule(table).weight.zero_()  # type: ignore[operator]
    return blind


def test_without_positions_moved_tokens_and_map_are_moved_logits(predictor: TransformerPredictor) -> None:
    blind = without(predictor, "rows", "columns")
    tokens, _, t = inputs(4, 4)
    map_ = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    moved = blind(tokens.roll((1, 2), (1, 2)), map_.roll((1, 2), (2, 3)), t)
    torch.testing.assert_close(moved, blind(tokens, map_, t).roll((1, 2), (2, 3)), rtol=1e-4, atol=1e-4)


def test_rows_go_down_and_columns_across(predictor: TransformerPredictor) -> None:
    tokens, condition, t = torch.zeros(1, 3, 4, dtype=torch.int64), torch.ones(1, 6), torch.ones(1)
    down = without(predictor, "columns")(tokens, condition, t)
    across = without(predictor, "rows")(tokens, condition, t)
    torch.testing.assert_close(down, down[..., :1].expand_as(down), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(across, across[..., :1, :].expand_as(across), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(down, down[..., :1, :], atol=1e-2)
    assert not torch.allclose(across, across[..., :1], atol=1e-2)


@pytest.mark.parametrize("at", [(0, 0), (3, 1)])
def test_every_token_sees_every_other(predictor: TransformerPredictor, at: tuple[int, int]) -> None:
    tokens, condition, t = inputs(4, 4, batch=1)
    before = predictor(tokens, condition, t)
    tokens[0, *at] = (tokens[0, *at] + 1) % 20
    assert ((predictor(tokens, condition, t) - before).norm(dim=1) > 0).all()


def test_a_table_is_resized_linearly_and_its_own_size_leaves_it_alone() -> None:
    table = torch.tensor([[0.0, 6.0], [2.0, 4.0], [4.0, 2.0], [6.0, 0.0]])
    assert torch.equal(resized(table, 4), table)
    torch.testing.assert_close(resized(table, 2), torch.tensor([[1.0, 5.0], [5.0, 1.0]]))
    larger = resized(table, 8)
    assert (larger.diff(dim=0)[1:-1, 0] == 1).all()
    torch.testing.assert_close(larger.sum(1), torch.full((8,), 6.0))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 30, "heads": 4}, "width must be a multiple of heads"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"heads": 0}, "heads must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=f"^transformer: {words}"):
        TransformerConfig(**wrong)
