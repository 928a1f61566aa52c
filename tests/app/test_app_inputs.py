"""Labels and uploads are read within limits, and what is refused is said without telling where the server keeps it."""

import pytest
from PIL import Image

from hf_oodclip.app.inputs import AppError, Limits, open_upload, parse_labels
from hf_oodclip.errors import LabelError


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat", ("cat",)),
        ("cat, dog\nacorn", ("cat", "dog", "acorn")),
        (" tabby cat ,,\n\n tabby cat\r\nhen ", ("tabby cat", "hen")),
        ("<b>x</b>; 'y'", ("<b>x</b>; 'y'",)),
    ],
)
def test_labels_are_separated_trimmed_and_unique(text, labels):
    assert parse_labels(text) == labels


def test_no_labels_and_too_many_are_refused():
    with pytest.raises(LabelError, match="type at least one"):
        parse_labels(" ,\n, ")
    assert len(parse_labels("a,b,c", Limits(labels=3))) == 3
    with pytest.raises(AppError, match="4 labels are more than the 3"):
        parse_labels("a,b,c,d", Limits(labels=3))


def test_a_good_upload_is_opened_as_rgb(photos):
    image = open_upload(photos["id"][0], Limits())
    assert image.mode == "RGB"
    assert image.size == Image.open(photos["id"][0]).size


def bad_uploads(folder, photos):
    whole = photos["id"][0].read_bytes()
    contents = {
        "empty.png": b"",
        "text.jpg": b"hello, I am no image" * 20,
        "truncated.png": whole[:-400],
        "header.png": whole[:12],
        "script.svg": b"<svg><script>alert(1)</script></svg>",
        "zeros.gif": b"\0" * 1000,
        "bomb.tif": b"II*\0\xff\xff\xff\xff",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    yield folder / "gone.png"


def test_bad_uploads_are_refused_by_name_alone(tmp_path, photos):
    for path in bad_uploads(tmp_path, photos):
        with pytest.raises(AppError) as caught:
            open_upload(path, Limits())
        assert path.name in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_sizes_are_limited(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("L", (400, 30)).save(path)
    assert open_upload(path, Limits(pixels=12_000)).size == (400, 30)
    with pytest.raises(AppError, match="400 x 30 pixels"):
        open_upload(path, Limits(pixels=11_999))
    path.write_bytes(path.read_bytes() + b"\0" * 1_000_000)
    with pytest.raises(AppError, match="larger than 1 MB"):
        open_upload(path, Limits(file_megabytes=1))
