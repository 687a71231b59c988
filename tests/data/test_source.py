"""Decoding: every kind of image becomes uint8 RGB, S x S; a file that can't be read is named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasthebb_cli.data.source import Fit, ImageFiles, InMemory, decode, decode_all
from fasthebb_cli.errors import InputError
from tests.data.images import picture, save


def read(path: Path, size: int = 8) -> torch.Tensor:
    return ImageFiles([str(path)], Fit(size)).read(torch.tensor([0]))[0]


def chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = read(save(tmp_path / "a.png", 1))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, chw(picture(1)))


@pytest.mark.slow
def test_a_large_image_is_read_without_a_word(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 1)
    code = (
        "from PIL import Image; from fasthebb_cli.data.source import Fit, decode; "
        f"Image.MAX_IMAGE_PIXELS = 50; decode({str(path)!r}, Fit(8))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert ran.stderr == ""


@pytest.mark.parametrize(("width", "height"), [(20, 8), (8, 20), (16, 16), (5, 3)])
def test_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path, width: int, height: int) -> None:
    path = save(tmp_path / "a.png", 1, (width, height))
    scale = 4 / min(width, height)
    resized = picture(1, (width, height)).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (resized.width - 4) / 2, (resized.height - 4) / 2
    if left % 1 == top % 1 == 0 and (width * scale) % 1 == (height * scale) % 1 == 0:
        expected = chw(resized.crop((int(left), int(top), int(left) + 4, int(top) + 4)))
        assert (read(path, 4).int() - expected.int()).abs().max() <= 1
    else:
        assert read(path, 4).shape == (3, 4, 4)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert (read(tmp_path / "board.png", 8).int() - 127).abs().max() < 10


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (8, 8), 255).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    grey.save(path)
    assert torch.equal(read(path), torch.full((3, 8, 8), 255, dtype=torch.uint8))


def test_a_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    image = picture(1).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(200)))
    with Image.open(tmp_path / "a.png") as saved:
        shown = saved.convert("RGBA")
    ground = Image.new("RGBA", shown.size, "white")
    assert torch.equal(read(tmp_path / "a.png"), chw(Image.alpha_composite(ground, shown).convert("RGB")))


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0].flatten().tolist() == [4 * i for i in range(64)]


@pytest.mark.parametrize("most", [1023, 65535])
def test_a_pgm_of_sixteen_bits_is_scaled_as_its_maximum_says(tmp_path: Path, most: int) -> None:
    greys = np.full((8, 8), most // 2, dtype=">u2")
    (tmp_path / "a.pgm").write_bytes(f"P5 8 8 {most}\n".encode() + greys.tobytes())
    assert read(tmp_path / "a.pgm").unique().tolist() == [127]


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (32, 1), (1, 32), (33, 1)])
def test_a_line_stays_a_line_when_it_is_padded(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 0, 0)).save(tmp_path / "a.png")
    pixels = torch.from_numpy(decode(str(tmp_path / "a.png"), Fit(16, "pad")).copy())
    red = (pixels == torch.tensor([255, 0, 0])[:, None, None]).all(0)
    assert int(red.sum()) == 16
    assert int((red.sum(0 if size[0] > 1 else 1) == 1).sum()) == 16


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, exif=exif)
    pixels = read(path, 4)
    assert pixels[:, 0].max() < 30
    assert pixels[:, 3].min() > 225


def test_a_large_jpeg_decoded_at_a_fraction_is_close_to_the_whole(tmp_path: Path) -> None:
    smooth = picture(5, (48, 32)).resize((240, 160), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    smooth.save(tmp_path / "a.png")
    difference = read(tmp_path / "a.jpg", 32).int() - read(tmp_path / "a.png", 32).int()
    assert difference.abs().float().mean() < 2


@pytest.mark.parametrize("content", [b"", b"no image", "half", "damaged"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path, content: bytes | str, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", 1, (64, 64))
    whole = path.read_bytes()
    if content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "damaged":
        path.write_bytes(whole[:8] + bytes(len(whole) - 8))
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: can't be read as an image: ")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.png: can't be read as an image: .*No such file"):
        read(tmp_path / "gone.png")


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(save(tmp_path / f"{i}.png", i)) for i in range(50)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    pixels = decode_all(paths, Fit(8))
    assert all(torch.equal(pixels[i], chw(picture(i))) for i in range(50))


def test_memory_and_files_read_the_same(tmp_path: Path) -> None:
    files = ImageFiles([str(save(tmp_path / f"{i}.png", i)) for i in range(5)], Fit(8))
    memory = InMemory(decode_all(files.paths, Fit(8)))
    chosen = torch.tensor([4, 0, 4])
    assert torch.equal(files.read(chosen), memory.read(chosen))
    assert (len(memory), memory.channels, memory.size) == (len(files), files.channels, files.size) == (5, 3, 8)
    assert torch.equal(memory.to(torch.device("cpu")).pixels, memory.pixels)
