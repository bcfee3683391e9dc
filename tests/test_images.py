"""Pictures in and out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from paella.images import (
    FADE,
    _drawable,
    _font_for,
    blanked,
    contact_sheet,
    covered,
    moved,
    open_picture,
    retouched,
    save,
    to_pictures,
    to_tensor,
)


def noise_pictures(count: int, width: int = 7, height: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def test_pictures_come_back_bit_for_bit() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")  # every value a byte can have
    for pictures in (noise_pictures(3), [ramp]):
        back = to_pictures(to_tensor(pictures))
        assert [picture.tobytes() for picture in back] == [picture.tobytes() for picture in pictures]
        assert all(picture.mode == "RGB" for picture in back)


def test_a_tensor_is_batch_channel_row_column_in_zero_to_one() -> None:
    picture = Image.new("RGB", (3, 2))
    picture.putpixel((2, 1), (255, 51, 0))
    pixels = to_tensor([picture, picture])
    assert pixels.shape == (2, 3, 2, 3)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[1, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    assert pixels.sum() == 2 * pixels[0, :, 1, 2].sum()


def test_other_modes_become_rgb() -> None:
    assert to_tensor([Image.new("L", (2, 2), 255), Image.new("RGBA", (2, 2), "white")]).min() == 1


def test_values_out_of_range_are_clamped_and_halves_accepted() -> None:
    pixels = torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1)
    assert to_pictures(pixels)[0].getpixel((0, 0)) == (0, 128, 255)
    assert to_pictures(pixels.bfloat16())[0].getpixel((0, 0)) == (0, 128, 255)


def test_a_contact_sheet_has_every_picture_row_by_row() -> None:
    pictures = noise_pictures(5, width=8, height=6)
    sheet = contact_sheet(pictures, columns=3, gap=2)
    assert sheet.size == (2 + 3 * 10, 2 + 2 * 8)
    for i, picture in enumerate(pictures):
        left, top = 2 + i % 3 * 10, 2 + i // 3 * 8
        assert sheet.crop((left, top, left + 8, top + 6)).tobytes() == picture.tobytes()


def test_a_contact_sheet_has_room_for_long_captions() -> None:
    pictures = [Image.new("RGB", (64, 64), "red")] * 2
    short = contact_sheet(pictures, ["a fox", "a cat"])
    long = contact_sheet(pictures, ["a fox " * 40, "a cat"])
    assert long.height > short.height > contact_sheet(pictures).height
    white = np.asarray(short) == 255
    assert not white.all(axis=2)[70:].all()  # the words are there, below the pictures
    assert np.asarray(long)[:4].min() == 255 and np.asarray(long)[-1].min() == 255  # nothing runs over the edges


def test_a_contact_sheet_has_no_boxes_for_letters_that_its_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ImageFont.load_default(10)
    monkeypatch.setattr("paella.images._font_for", lambda text: own)

    def sheet(caption: str) -> bytes:
        return contact_sheet([Image.new("RGB", (64, 64), "red")], [caption]).tobytes()

    assert sheet("a fox → ein Bär, привет") == sheet("a fox -> ein Bar, ??????")


def test_a_contact_sheet_takes_a_font_that_knows_more_where_there_is_one() -> None:
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", 10)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    assert _font_for("a fox").getname() != font.getname()  # type: ignore[union-attr]
    assert _font_for("привет").getname() == font.getname()  # type: ignore[union-attr]
    assert _drawable("ein Bär → привет", font) == "ein Bär → привет"


def test_a_saved_picture_says_how_it_was_made(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    picture.info = {"prompt": "ein Bär", "seed": "7", "dpi": (72, 72)}
    save(picture, tmp_path / "bear.png")
    with Image.open(tmp_path / "bear.png") as again:
        assert again.tobytes() == picture.tobytes() and again.info == {"prompt": "ein Bär", "seed": "7"}
    with pytest.raises(ValueError, match=r"^file: must end in \.png"):
        save(picture, str(tmp_path / "bear.jpg"))


def test_whatever_pillow_raises_of_a_damaged_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: object) -> None:
        raise RuntimeError("Failed to decode image")  # as of an AVIF with a few bits turned

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ValueError, match=r"^image: cannot read fox\.avif: it is not a whole picture$"):
        open_picture("fox.avif")


def test_an_opened_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    noise_pictures(1, 90, 90)[0].save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(ValueError, match=r"^mask: cannot be read"):
        open_picture(opened, "mask")
    noise_pictures(1)[0].save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(ValueError, match=r"^image: cannot be read"):
        open_picture(closed)


def off_by(picture: Image.Image, levels: np.ndarray) -> Image.Image:
    return Image.fromarray((np.asarray(picture, int) + levels).clip(0, 255).astype(np.uint8))


def test_a_tokenizer_s_error_is_taken_from_what_is_painted_in_the_mask() -> None:
    original = Image.new("RGB", (40, 24), (100, 120, 140))
    mask = torch.zeros(24, 40, dtype=torch.bool)
    mask[6:20, 10:40] = True
    painted = off_by(original, np.array([7, -5, 0]))
    done = np.asarray(retouched(painted, original, mask))
    assert (done[mask.numpy()] == (100, 120, 140)).all()
    assert (done[~mask.numpy()] == np.asarray(painted)[~mask.numpy()]).all()


def test_where_another_thing_was_painted_the_one_goes_over_into_the_other_within_a_few_pixels() -> None:
    original, other = Image.new("RGB", (24, 8), "white"), Image.new("RGB", (24, 8), (0, 55, 255))
    mask = torch.zeros(8, 24, dtype=torch.bool)
    mask[:, 6:18] = True
    done = np.asarray(retouched(other, original, mask), int)
    assert (done == done[:1]).all() and (done[0] == done[0, ::-1]).all()
    assert (done[0, 6] == 255).all()  # as the pixel beside it, which is kept
    assert (np.diff(done[0, 6 : 7 + FADE, 0]) < -50).all()
    assert (done[0, 6 + FADE : 18 - FADE] == (0, 55, 255)).all()
    assert (done[0, :6] == (0, 55, 255)).all()  # the rest is not its task
    everywhere = torch.ones(8, 24, dtype=torch.bool)
    assert retouched(original, other, everywhere).tobytes() == original.tobytes()


def test_an_outline_goes_on_straight_from_where_it_was() -> None:
    """Painted two pixels too low, a dark line in the mask begins at the old one's end."""
    pixels = np.full((24, 24, 3), 200, np.uint8)
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[:, 12:] = True
    original, painted = pixels.copy(), pixels.copy()
    original[10], painted[12] = 30, 30
    done = np.asarray(retouched(Image.fromarray(painted), Image.fromarray(original), mask), int)
    assert (abs(done[:, 12] - original[:, 11]) <= 1).all()
    assert (done[:, 12 + FADE :] == painted[:, 12 + FADE :]).all()


def test_an_error_that_changes_along_the_border_goes_over_smoothly() -> None:
    original = Image.new("RGB", (64, 64), "gray")
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, 16:48] = True
    painted = off_by(original, np.where(np.arange(64) < 32, 12, -12)[None, :, None])  # left too light, right too dark
    done = np.asarray(retouched(painted, original, mask), int)[:, :, 0] - 128
    assert (abs(done[:, 16]) <= 3).all() and (abs(done[:, 47]) <= 3).all()
    assert np.abs(np.diff(done[:, 16:31], axis=1)).max() <= 6


def test_what_is_not_known_has_the_mean_colour_of_what_is() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(2, 4, 4, dtype=torch.bool)
    known[0, :2] = True
    seen = blanked(pixels, known)
    assert torch.equal(seen[0, :, :4], pixels[0, :, :4])
    torch.testing.assert_close(seen[0, :, 4:], pixels[0, :, :4].mean((1, 2))[:, None, None].expand(3, 4, 8))
    assert (seen[1] == 0).all()


def test_a_moved_picture_is_filled_by_its_border() -> None:
    grids = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    still, down_left, far = moved(grids, torch.tensor([[0, 0], [2, -3], [-100, 100]]))
    assert torch.equal(still, grids[0])
    assert torch.equal(down_left[2:, :4], grids[1, :3, 3:])
    assert torch.equal(down_left[0, :4], grids[1, 0, 3:]) and torch.equal(down_left[2:, -1], grids[1, :3, -1])
    assert torch.equal(far, grids[2, -1, 0].expand(5, 7))


def test_a_covered_part_takes_the_colours_around_it_and_the_rest_stays() -> None:
    pixels = np.full((16, 20, 3), (10, 200, 30), np.uint8)
    mask = np.zeros((16, 20), bool)
    mask[3:9, 4:15] = True
    pixels[mask] = 255
    assert (np.asarray(covered(Image.fromarray(pixels), torch.from_numpy(mask))) == (10, 200, 30)).all()
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8))
    assert (np.asarray(covered(noisy, torch.from_numpy(mask)))[~mask] == np.asarray(noisy)[~mask]).all()
    everything = torch.ones(16, 20, dtype=torch.bool)
    assert covered(noisy, everything) is noisy is covered(noisy, ~everything)
