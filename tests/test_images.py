"""Reading images: odd pictures work, broken ones say which and why, `find_images` finds what was meant."""

import base64
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_oodclip.errors import ImageReadError
from hf_oodclip.image_features import pixel_values_of
from hf_oodclip.images import IMAGE_SUFFIXES, MAX_ASPECT_RATIO, find_images, load_image


@pytest.fixture(scope="module")
def picture(real_images) -> Image.Image:
    """A real colour image, 64 x 64."""
    return real_images["id"][3].convert("RGB")


@pytest.fixture(scope="module")
def processor(shared_model):
    """The pocket's image processor."""
    return shared_model.image_processor


def encoded(image, kind="PNG", **options) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image) -> np.ndarray:
    """What `load_image` makes of an image, checked to be upright 8-bit RGB."""
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def processed(processor, image) -> torch.Tensor:
    """Pixel values of one image, checked for shape and finiteness."""
    values = pixel_values_of(processor, [image])
    assert values.shape == (1, 3, 64, 64)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    return values


# ---------------------------------------------------------------- kinds of pictures


def on_white(colours, alpha):
    opacity = alpha[..., None] / 255
    return np.round(colours * opacity + 255 * (1 - opacity)).astype(np.uint8)


def kinds_of(picture):
    """The picture in every mode, with what the pixels of each must be."""
    colours = np.asarray(picture)
    grey = np.asarray(picture.convert("L"))
    alpha = Image.linear_gradient("L").resize(picture.size)
    rgba, grey_alpha = picture.copy(), picture.convert("L")
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    palette = picture.quantize(16)
    transparent = palette.copy()
    opacity_of_index = np.array([0, 128] + [255] * 14)
    transparent.info["transparency"] = bytes(opacity_of_index.tolist())
    palette_colours = np.asarray(palette.convert("RGB"))
    inverted = Image.merge("CMYK", [*Image.fromarray(255 - colours).split(), Image.new("L", picture.size, 0)])
    bits = picture.convert("1")
    stacked = np.stack([grey] * 3, axis=-1)
    return {
        "RGB": (picture, colours),
        "L": (picture.convert("L"), stacked),
        "LA": (grey_alpha, on_white(stacked, np.asarray(alpha))),
        "RGBA": (rgba, on_white(colours, np.asarray(alpha))),
        "P": (palette, palette_colours),
        "P with transparency": (transparent, on_white(palette_colours, opacity_of_index[np.asarray(palette)])),
        "CMYK": (inverted, colours),
        "1": (bits, np.stack([np.asarray(bits).astype(np.uint8) * 255] * 3, axis=-1)),
    }


KINDS = ("RGB", "L", "LA", "RGBA", "P", "P with transparency", "CMYK", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_modes(picture, processor, kind):
    image, expected = kinds_of(picture)[kind]
    before = (image.mode, image.tobytes())
    np.testing.assert_allclose(pixels(image).astype(int), expected.astype(int), atol=1)
    assert (image.mode, image.tobytes()) == before
    values = processed(processor, image)
    assert torch.equal(values, processor(images=[image], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("kind", KINDS)
def test_modes_from_files(picture, processor, kind, tmp_path):
    image, _ = kinds_of(picture)[kind]
    path = tmp_path / ("image.tif" if image.mode == "CMYK" else "image.png")
    image.save(path)
    assert np.array_equal(pixels(path), pixels(image))
    assert torch.equal(processed(processor, str(path)), processed(processor, image))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (2, 2), (4, 3), (3, 4)])
def test_images_of_a_few_pixels_keep_their_colour(processor, size):
    values = processed(processor, Image.new("RGB", size, (255, 0, 128)))
    mean, std = (torch.tensor(v) for v in (processor.image_mean, processor.image_std))
    colours = values[0].permute(1, 2, 0) * std + mean
    torch.testing.assert_close(colours, torch.tensor([1.0, 0.0, 128 / 255]).expand(64, 64, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (100_000, 3)])
def test_a_strip_needs_little_memory(processor, size):
    strip = Image.new("RGB", size, "green")
    assert max(load_image(strip).size) <= MAX_ASPECT_RATIO * min(size)
    tracemalloc.start()
    try:
        processed(processor, strip)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # resized whole, 1 x 10,000 would be 64 x 640,000 floats, 490 MB


@pytest.mark.parametrize("size", [(20, 1), (1, 20), (150, 8), (64, 1280), (16, 1), (33, 2)])
def test_cutting_a_strip_changes_no_pixel_that_counts(processor, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    own = processor(images=[Image.fromarray(noise)], return_tensors="pt", input_data_format="channels_last")
    if (max(size) - MAX_ASPECT_RATIO * min(size)) % 2 == 0:
        torch.testing.assert_close(processed(processor, noise), own["pixel_values"])
    else:  # the exact middle lies between two pixels
        assert processed(processor, noise).std() > 0.5


@pytest.mark.parametrize(
    ("name", "mode"), [("image.png", "I;16"), ("image.tif", "I;16"), ("big_endian.tif", "I;16B"), ("wide.tif", "I")]
)
def test_sixteen_bits_are_scaled_not_clipped(picture, processor, name, mode, tmp_path):
    eight = np.asarray(picture.convert("L"))
    sixteen = eight.astype(np.uint16) * 257
    if mode == "I;16B":
        image = Image.frombytes(mode, picture.size, sixteen.astype(">u2").tobytes())
    else:
        image = Image.fromarray(sixteen.astype(np.int32) if mode == "I" else sixteen)
    image.save(tmp_path / name)
    assert Image.open(tmp_path / name).mode == image.mode == mode
    for source in (tmp_path / name, image):
        assert np.array_equal(pixels(source), pixels(Image.fromarray(eight)))
    assert torch.equal(processed(processor, tmp_path / name), processed(processor, Image.fromarray(eight)))


def test_sixteen_bits_are_scaled_whatever_they_came_by(picture, server, tmp_path):
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(tmp_path / "image.png")
    expected = pixels(tmp_path / "image.png")
    text = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    for source in (f"{server}/image.png", f"data:image/png;base64,{text}", text):
        assert np.array_equal(pixels(source), expected)


@pytest.mark.parametrize(
    ("orientation", "corners"),
    [  # which colours end up at the top left, top right, bottom left, bottom right
        (1, "rgbw"), (2, "grwb"), (3, "wbgr"), (4, "bwrg"), (5, "rbgw"), (6, "brwg"), (7, "wgbr"), (8, "gwrb"),
    ],
)  # fmt: skip
def test_exif_orientation_is_applied(orientation, corners, tmp_path):
    colours = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
    stored = np.zeros((32, 64, 3), dtype=np.uint8)
    for name, rows, columns in (("r", 0, 0), ("g", 0, 1), ("b", 1, 0), ("w", 1, 1)):
        stored[rows * 16 : rows * 16 + 16, columns * 32 : columns * 32 + 32] = colours[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "image.jpg", exif=exif, quality=100, subsampling=0)
    found = pixels(tmp_path / "image.jpg")
    assert found.shape == ((64, 32, 3) if orientation >= 5 else (32, 64, 3))
    for corner, (row, column) in zip(corners, ((2, 2), (2, -3), (-3, 2), (-3, -3)), strict=True):
        np.testing.assert_allclose(found[row, column].astype(int), colours[corner], atol=8)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:], duration=10)
    assert Image.open(tmp_path / "image.gif").n_frames == 3
    assert (pixels(tmp_path / "image.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(picture, kind, tmp_path):
    path = tmp_path / "name_without_suffix"
    picture.save(path, kind)
    difference = np.abs(pixels(path).astype(int) - np.asarray(picture).astype(int)).mean()
    assert difference < (12 if kind in ("JPEG", "WEBP", "GIF") else 1e-9)


# ---------------------------------------------------------------- where they come from


def test_path_forms(picture, tmp_path, monkeypatch):
    name = "a name with spaces, ünïcödé and #?.png"
    picture.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / name, str(tmp_path / name), name, Path(name)):
        assert np.array_equal(pixels(source), np.asarray(picture))


def test_arrays(picture):
    colours = np.asarray(picture)
    assert np.array_equal(pixels(colours), colours)
    assert np.array_equal(pixels(colours[::-1, ::2]), colours[::-1, ::2])  # not contiguous
    grey = np.asarray(picture.convert("L"))
    assert np.array_equal(pixels(grey), np.stack([grey] * 3, axis=-1))
    rgba = np.dstack([colours, grey])
    np.testing.assert_allclose(pixels(rgba).astype(int), on_white(colours, grey).astype(int), atol=1)


def test_grey_arrays_with_a_channel_axis(picture):
    grey = np.asarray(picture.convert("L"))
    assert np.array_equal(pixels(grey[..., None]), pixels(grey))


@pytest.mark.parametrize("side", [4, 64], ids=["tiny", "normal"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"], ids=["base64", "data URL"])
def test_base64(picture, side, prefix):
    image = picture.resize((side, side))
    text = prefix + base64.b64encode(encoded(image)).decode()
    assert (len(text) < 300) == (side == 4)
    assert np.array_equal(pixels(text), np.asarray(image))


def test_url(picture, server, tmp_path):
    picture.save(tmp_path / "image.png")
    assert np.array_equal(pixels(f"{server}/image.png"), np.asarray(picture))
    picture.convert("L").save(tmp_path / "grey.png")
    assert np.array_equal(pixels(f"{server}/grey.png"), pixels(picture.convert("L")))


def test_the_processor_sees_what_was_loaded(real_images, processor, tmp_path):
    sources = []
    for number, image in enumerate(real_images["far"]):
        sources.append(tmp_path / f"{number}.png")
        image.save(sources[-1])
    own = processor(images=real_images["far"], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values_of(processor, sources), own)
    assert own.std() > 0.5


# ---------------------------------------------------------------- what cannot be read


def broken_files(folder, picture):
    """Files that are no image, and a word their error must hold."""
    jpeg, png = encoded(picture, "JPEG"), encoded(picture)
    contents = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png[: len(png) // 2], "cannot be read"),
        "header_only.jpg": (jpeg[:20], "not an image|cannot be read"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no image at all", "not an image"),
        "page.png": (b"<!DOCTYPE html><html></html>", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return contents


@pytest.mark.parametrize(
    "name", ["truncated.jpg", "truncated.png", "header_only.jpg", "empty.jpg", "text.jpg", "page.png"]
)
def test_broken_files_are_named(picture, name, tmp_path):
    _, reason = broken_files(tmp_path, picture)[name]
    for source in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ImageReadError, match=name.replace(".", r"\.")) as raised:
            load_image(source)
        raised.match(reason)


def test_a_broken_picture_opened_by_the_user_is_named(picture, tmp_path):
    broken_files(tmp_path, picture)
    with Image.open(tmp_path / "truncated.jpg") as image, pytest.raises(ImageReadError, match=r"truncated\.jpg"):
        load_image(image)


@pytest.mark.parametrize("source", ["no/such/image.png", Path("no/such/image.png"), "cat", ""])
def test_missing_path(source):
    with pytest.raises(ImageReadError, match="does not exist") as raised:
        load_image(source)
    assert repr(str(source)) in str(raised.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_directory(tmp_path, kind):
    with pytest.raises(ImageReadError, match=r"(?i)is a (directory|folder)") as raised:
        load_image(kind(tmp_path))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("thing", [None, 3, b"\x89PNG", {"image": None}, ["a.png"], object()])
def test_things_that_are_no_image(thing):
    with pytest.raises(ImageReadError, match=rf"path, URL, base64.*PIL image.*got {type(thing).__name__}"):
        load_image(thing)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool, np.uint16])
def test_arrays_of_another_dtype(dtype):
    with pytest.raises(ImageReadError, match=rf"uint8.*{np.dtype(dtype).name}"):
        load_image(np.zeros((4, 4, 3), dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8, 3), (8,), (8, 8, 5)])
def test_arrays_of_another_shape(shape):
    with pytest.raises(ImageReadError, match="array"):
        load_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_images_without_a_pixel(shape):
    with pytest.raises(ImageReadError):
        load_image(np.zeros(shape, dtype=np.uint8))


def test_float_images():
    with pytest.raises(ImageReadError, match=r"[Ff]loat.*8 bits"):
        load_image(Image.new("F", (4, 4)))


def test_decompression_bomb(picture, tmp_path, monkeypatch):
    picture.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the error comes at twice that; the picture has 4096
    with pytest.raises(ImageReadError, match=r"bomb\.png.*too large"):
        load_image(tmp_path / "bomb.png")


def test_closed_port(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Port 9 is for discarding: nothing serves it.
    with pytest.raises(ImageReadError, match=r"http://127\.0\.0\.1:9/image\.png.*fetched"):
        load_image("http://127.0.0.1:9/image.png")


def test_urls_that_give_no_image(server, tmp_path):
    (tmp_path / "page.html").write_text("<html></html>")
    for name in ("missing.png", "page.html"):
        with pytest.raises(ImageReadError, match=name.replace(".", r"\.")):
            load_image(f"{server}/{name}")


@pytest.mark.parametrize("text", ["data:image/png;base64,", "data:image/png", "A" * 4000, "not base64! " * 400])
def test_text_that_is_no_image_gives_a_short_message(text):
    with pytest.raises(ImageReadError) as raised:
        load_image(text)
    assert len(str(raised.value)) < 1000


# ---------------------------------------------------------------- finding images


@pytest.fixture
def album(tmp_path, monkeypatch) -> Path:
    """A folder, also the working directory, with images and other files at three depths."""
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp", "sub/deep/d.tiff", "sub/e.png.bak", "sub/deep/f.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.tiff", "sub/deep/f.jpeg"]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".", ALL),
        ("sub", ALL[2:]),
        ("sub/", ALL[2:]),
        ("*", ALL[:2]),
        ("*.png", ["b.png"]),
        ("sub/*", ["sub/c.webp"]),
        ("sub/*/*.tiff", ["sub/deep/d.tiff"]),
        ("**/*", ALL),
        ("**/*.jpeg", ["sub/deep/f.jpeg"]),
        ("sub/**/d.*", ["sub/deep/d.tiff"]),
        ("?.png", ["b.png"]),
        ("[ab].*", ["a.JPG", "b.png"]),
        ("b.png", ["b.png"]),
        ("notes.txt", ["notes.txt"]),
        ("sub/e.png.bak", ["sub/e.png.bak"]),
    ],
)
def test_find_images(album, absolute, pattern, expected):
    given = f"{album}/{pattern}" if absolute else pattern
    base = album if absolute else Path()
    assert find_images([given]) == [base / name for name in expected]


def test_find_images_keeps_the_order_given_and_names_each_once(album):
    found = find_images(["sub/deep", "b.png", "*.png", "."])
    assert [str(path) for path in found] == ["sub/deep/d.tiff", "sub/deep/f.jpeg", "b.png", "a.JPG", "sub/c.webp"]


def test_find_images_with_pattern_characters_in_a_name(album):
    (album / "odd[1].png").touch()
    assert find_images(["odd[1].png"]) == [Path("odd[1].png")]


def test_find_images_in_the_home_folder(album, monkeypatch):
    monkeypatch.setenv("HOME", str(album))
    assert find_images(["~/b.png"]) == [album / "b.png"]
    assert find_images(["~/sub"]) == [album / name for name in ALL[2:]]


def test_find_images_follows_links(album):
    (album / "sub" / "link.png").symlink_to(album / "b.png")
    assert Path("sub/link.png") in find_images(["sub"])


@pytest.mark.parametrize("pattern", ["nothing.png", "*.bmp", "folder.png", "no/such/folder", "sub/**/x*", ""])
def test_find_images_says_what_matched_nothing(album, pattern):
    if pattern == "":
        (album / "only_text").mkdir()
        pattern = "only_text"
    with pytest.raises(ImageReadError, match="No image found") as raised:
        find_images(["b.png", pattern])
    assert repr(pattern) in str(raised.value)


def test_every_suffix_can_be_read_by_pillow():
    Image.init()
    assert set(Image.EXTENSION) >= IMAGE_SUFFIXES
