"""Laws of the picture folder: what is read, what is skipped and named, and that nothing in a folder is fatal."""

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paella.data import open_loader
from paella.data.folder import Folder, read_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def add(path: Path, image: Image.Image | None = None, caption: str | None = "a thing", **how: object) -> Path:
    """A picture in a folder, with its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (20, 20), RED)).save(path, **how)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def jsonl(folder: Path, *lines: object) -> None:
    words = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join(words), encoding="utf-8")


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def only(path: Path, size: int = 8) -> Image.Image:
    folder = Folder(path, size)
    assert folder.skipped == []
    assert len(folder) == 1
    picture = folder[0][0]
    assert (picture.mode, picture.size) == ("RGB", (size, size))
    return picture


# --- captions ---


def test_sidecars_and_sub_folders(tmp_path: Path) -> None:
    add(tmp_path / "b.png", caption="a pear\n")
    add(tmp_path / "a.JPG", caption="an apple")
    add(tmp_path / "more" / "even more" / "c.v2.webp", caption="\ufeffein Apfel, größer")
    folder = Folder(tmp_path)
    assert [folder[i][1] for i in range(len(folder))] == ["an apple", "a pear", "ein Apfel, größer"]
    assert all((p.mode, p.size) == ("RGB", (64, 64)) for p, _ in folder)  # iterating ends by itself
    assert folder.skipped == []


def test_jsonl_with_our_and_hugging_face_names(tmp_path: Path) -> None:
    add(tmp_path / "a.png", caption=None)
    add(tmp_path / "sub" / "b.png", caption=None)
    add(tmp_path / "sub" / "c.png", caption=None)
    jsonl(tmp_path, {"file": "a.png", "caption": " A "}, "", {"file_name": "sub/b.png", "text": "B"})
    jsonl(tmp_path / "sub", {"file": "c.png", "caption": "C", "author": "who"})
    folder = Folder(tmp_path)
    assert [words for _, words in folder] == ["A", "B", "C"]
    assert folder.skipped == []


def test_several_captions_are_alternatives(tmp_path: Path) -> None:
    add(tmp_path / "a.png", caption="one\n\n  two  \n")
    add(tmp_path / "b.png", caption="alone")
    jsonl(tmp_path, {"file": "a.png", "caption": "three"}, {"file": "a.png", "caption": "four"})
    folder = Folder(tmp_path)
    assert folder.captions == [["one", "two", "three", "four"], ["alone"]]
    assert folder[0][1] == "one"
    assert [folder.draw(0, turn)[1] for turn in range(6)] == ["one", "two", "three", "four", "one", "two"]
    batches = islice(open_loader(folder, 2, seed=0), 4)  # each an epoch
    seen = [dict(zip(captions, pixels.mean((1, 2, 3)).tolist(), strict=True)) for pixels, captions in batches]
    assert [set(epoch) for epoch in seen] == [{words, "alone"} for words in ("one", "two", "three", "four")]
    assert len({epoch["alone"] for epoch in seen}) == 1  # each caption stays with its picture


def test_indices_are_plain(tmp_path: Path) -> None:
    add(tmp_path / "a.png")
    folder = Folder(str(tmp_path))
    for index in (1, -1):
        with pytest.raises(IndexError):
            folder[index]


def test_samples_repeat_and_survive_pickling(tmp_path: Path) -> None:
    add(tmp_path / "a.png", noise_picture())
    folder = Folder(tmp_path, 16)
    copy = pickle.loads(pickle.dumps(folder))
    assert folder[0][0].tobytes() == folder[0][0].tobytes() == copy[0][0].tobytes()


# --- what is skipped ---


def test_captions_of_what_is_not_read_are_named_and_other_files_passed_over(tmp_path: Path) -> None:
    add(tmp_path / "a.png")
    for name in ("a.json", "b.heic", "b.txt", "c.heic", "notes.txt"):
        (tmp_path / name).write_text("a thing")
    folder = Folder(tmp_path)
    assert len(folder) == 1
    assert folder.skipped == [("b.heic", ".heic is not among the kinds of pictures that are read")]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 40]) + data[middle + 40 :]


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [
        (suffix, harm)
        for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp")
        for harm in ("truncated", "garbage", "empty")
    ]
    + [("png", "damaged")],
)
def test_a_broken_picture_is_named_and_not_fatal(tmp_path: Path, suffix: str, harm: str) -> None:
    harms: dict[str, Callable[[bytes], bytes]] = {
        "truncated": truncated,
        "damaged": damaged,
        "garbage": lambda data: b"this is not a picture",
        "empty": lambda data: b"",
    }
    broken = add(tmp_path / "sub" / f"broken.{suffix}", noise_picture())
    broken.write_bytes(harms[harm](broken.read_bytes()))
    add(tmp_path / "whole.png", caption="fine")
    folder = Folder(tmp_path)
    assert [words for _, words in folder] == ["fine"]
    [(file, reason)] = folder.skipped
    assert file == f"sub/broken.{suffix}"
    assert reason.startswith("broken picture: ")


def test_missing_and_empty_captions_are_named(tmp_path: Path) -> None:
    add(tmp_path / "fine.png")
    add(tmp_path / "none.png", caption=None)
    add(tmp_path / "blank.png", caption=" \n\n")
    add(tmp_path / "latin.png", caption=None).with_suffix(".txt").write_bytes(b"caf\xe9")
    folder = Folder(tmp_path)
    assert len(folder) == 1
    assert [file for file, _ in folder.skipped] == ["blank.png", "latin.png", "none.png"]
    reasons = dict(folder.skipped)
    assert reasons["blank.png"] == reasons["none.png"] == "no caption"
    assert "cannot be read" in reasons["latin.png"]


def test_bad_jsonl_lines_are_named_and_the_good_ones_used(tmp_path: Path) -> None:
    add(tmp_path / "a.png", caption=None)
    jsonl(
        tmp_path,
        "{not json",
        "[1, 2]",
        {"caption": "whose?"},
        {"file": "a.png"},
        {"file": "a.png", "caption": "  "},
        {"file": "a.png", "caption": 3},
        {"file": "missing.png", "caption": "nobody"},
        "[" * 100_000,
        {"file": "a.png", "caption": "good"},
    )
    with (tmp_path / "captions.jsonl").open("ab") as file:
        file.write(b'\n{"file": "a.png", "caption": "caf\xe9"}\n')
    folder = Folder(tmp_path)
    assert folder.captions == [["good"]]
    assert [file for file, _ in folder.skipped] == [f"captions.jsonl:{line}" for line in (1, 2, 3, 4, 5, 6, 7, 8, 10)]
    assert "missing.png" in dict(folder.skipped)["captions.jsonl:7"]


@pytest.mark.parametrize("entry", [{"file": "a.png", "caption": "a cat \ud83d"}, {"file": "\ud83d.png"}])
def test_half_a_character_is_a_bad_line_whose_reason_can_be_printed(tmp_path: Path, entry: dict[str, str]) -> None:
    add(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps(entry))
    folder = Folder(tmp_path)
    ((where, reason),) = folder.skipped
    assert where == "captions.jsonl:1" and reason.encode() and len(folder) == 1


def test_a_large_jpeg_is_read_about_as_if_it_were_decoded_whole(tmp_path: Path) -> None:
    y, x = np.mgrid[:900, :1400] / 1400
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], axis=-1)
    picture = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.save(tmp_path / "a.png")
    jpeg, png = (np.asarray(read_picture(tmp_path / name, 64), dtype=float) for name in ("a.jpg", "a.png"))
    assert jpeg.shape == (64, 64, 3) and abs(jpeg - png).mean() < 1.5


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    add(tmp_path / "a.png")
    add(tmp_path / ".trash" / "b.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves beside pictures")
    (tmp_path / "readme.md").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    folder = Folder(tmp_path)
    assert len(folder) == 1
    assert folder.skipped == []


def test_linked_folders_are_entered_once_and_cycles_end(tmp_path: Path) -> None:
    add(tmp_path / "elsewhere" / "a.jfif", format="JPEG")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    assert [file.relative_to(tmp_path).as_posix() for file in Folder(tmp_path / "set").files] == ["set/link/a.jfif"]


def test_an_accent_may_be_a_character_of_its_own(tmp_path: Path) -> None:
    """As macOS writes file names, and nobody captions."""
    add(tmp_path / "cafe\u0301.png", caption=None)
    jsonl(tmp_path, {"file": "caf\u00e9.png", "caption": "a café"})
    folder = Folder(tmp_path)
    assert (folder.captions, folder.skipped) == ([["a café"]], [])


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    add(tmp_path / "good.png")
    add(tmp_path / "bad\udcff.png", caption=None)
    assert [name.encode() for name, _ in Folder(tmp_path).skipped] == [b"bad\\udcff.png"]


@pytest.mark.parametrize("case", ["empty", "missing", "file", "all skipped"])
def test_a_folder_of_nothing_is_an_error_that_says_what_is_expected(tmp_path: Path, case: str) -> None:
    path = tmp_path / "pictures"
    if case == "file":
        path.write_text("")
    elif case != "missing":
        path.mkdir()
    if case == "all skipped":
        add(path / "lonely.png", caption=None)
    with pytest.raises(ValueError) as error:
        Folder(path)
    for words in (str(path), ".png", ".txt", "captions.jsonl", "caption"):
        assert words in str(error.value)
    assert ("lonely.png: no caption" in str(error.value)) == (case == "all skipped")


def test_size_is_positive(tmp_path: Path) -> None:
    add(tmp_path / "a.png")
    with pytest.raises(ValueError, match="size"):
        Folder(tmp_path, 0)


# --- pictures ---


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_the_centre_square_is_kept(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, RED)
    image.paste(GREEN, ((shape[0] - 20) // 2, (shape[1] - 20) // 2, (shape[0] + 20) // 2, (shape[1] + 20) // 2))
    add(tmp_path / "a.png", image)
    assert only(tmp_path).getcolors() == [(64, GREEN)]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), BLUE)
    image.paste(RED, (0, 0, 16, 32))  # stored with red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: red on top
    add(tmp_path / "a.png", image, exif=exif)
    picture = only(tmp_path)
    assert picture.getpixel((7, 0)) == picture.getpixel((0, 0)) == RED
    assert picture.getpixel((0, 7)) == picture.getpixel((7, 7)) == BLUE


def test_a_picture_whose_exif_data_are_damaged_is_read_as_it_is(tmp_path: Path) -> None:
    add(tmp_path / "a.png", exif=b"Exif\0\0garbage!")
    assert only(tmp_path).getcolors() == [(64, RED)]


def half_clear(mode: str) -> Image.Image:
    """Left half opaque, right half transparent."""
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((0, 0, 0, 0), (16, 0, 32, 32))
    return image.convert(mode)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_what_is_transparent_becomes_white(tmp_path: Path, suffix: str) -> None:
    add(tmp_path / f"a.{suffix}", half_clear("RGBA"), lossless=True)
    picture = only(tmp_path)
    assert picture.getpixel((0, 4)) == RED
    assert picture.getpixel((7, 4)) == WHITE


def test_gray_with_alpha(tmp_path: Path) -> None:
    add(tmp_path / "a.png", half_clear("LA"))
    picture = only(tmp_path)
    assert picture.getpixel((0, 4)) == (76, 76, 76)  # the gray of red
    assert picture.getpixel((7, 4)) == WHITE


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    add(tmp_path / "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    assert only(tmp_path).getpixel((4, 4)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (16, 0, 32, 32))
    add(tmp_path / "plain" / f"a.{suffix}", image)
    add(tmp_path / "clear" / f"a.{suffix}", image, transparency=1)
    assert only(tmp_path / "plain").getpixel((7, 4)) == GREEN
    assert only(tmp_path / "clear").getpixel((7, 4)) == WHITE
    assert only(tmp_path / "plain").getpixel((0, 4)) == only(tmp_path / "clear").getpixel((0, 4)) == RED


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_keeps_its_brightness(tmp_path: Path, suffix: str) -> None:
    levels = np.repeat(np.array([0, 128 * 257, 65535, 65535], dtype=np.uint16)[None], 4, axis=0)
    add(tmp_path / f"a.{suffix}", Image.fromarray(levels))
    picture = only(tmp_path, 4)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_floats_are_0_to_1(tmp_path: Path) -> None:
    levels = np.array([[0, 0.5], [1, np.nan]], dtype=np.float32)
    add(tmp_path / "a.tif", Image.fromarray(levels))
    picture = only(tmp_path, 2)
    assert [picture.getpixel((x, y)) for y in (0, 1) for x in (0, 1)] == [(0,) * 3, (128,) * 3, (255,) * 3, (0,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_any_mode_comes_out_as_the_same_colour(tmp_path: Path, mode: str, suffix: str) -> None:
    if suffix == "jpg" and mode in ("1", "LAB"):
        pytest.skip("JPEG does not store it")
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (16, 16), level) for level in (255, 128, 128)])  # white
        expected = np.array(WHITE)
    else:
        image = Image.new("RGB", (16, 16), WHITE if mode == "1" else (200, 60, 30)).convert(mode)
        expected = np.array(image.convert("RGB").getpixel((0, 0)))
    add(tmp_path / f"a.{suffix}", image)
    found = np.array(only(tmp_path).getpixel((4, 4)))
    assert np.abs(found - expected).max() <= 4


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    add(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert only(tmp_path).getpixel((4, 4)) == RED


def test_one_pixel_wide_is_enough(tmp_path: Path) -> None:
    add(tmp_path / "a.png", Image.new("RGB", (1, 300), GREEN))
    assert only(tmp_path).getcolors() == [(64, GREEN)]
