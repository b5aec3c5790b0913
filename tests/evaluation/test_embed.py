"""Pictures inside a page."""

import base64

import pytest

from histocrypt.evaluation.figures import embed, embed_bytes


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "image/png"), (".svg", "image/svg+xml"), (".jpg", "image/jpeg")])
def test_a_picture_is_its_kind_and_its_bytes(tmp_path, suffix, kind):
    content = bytes(range(256))
    file = tmp_path / f"picture{suffix}"
    file.write_bytes(content)
    address = embed(file)
    head, code = address.split(",")
    assert head == f"data:{kind};base64"
    assert base64.b64decode(code, validate=True) == content
    assert embed_bytes(content, suffix) == address
