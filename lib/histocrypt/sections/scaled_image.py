"""A reduced picture of a section, addressed in full-resolution pixels."""

from __future__ import annotations

import numpy as np

from histocrypt.sections.image import ImageSource


class ScaledImage(ImageSource):
    """An image at hand that is smaller than the one the coordinates refer to.

    Windows are given in full-resolution pixels and enlarged on reading, so that everything else may go on speaking of
    full resolution; there is no more detail in them than the image at hand has.

    Parameters
    ----------
    image
        The image at hand.
    scale
        Its pixels per full-resolution pixel, at most 1.
    """

    def __init__(self, image: ImageSource, scale: float) -> None:
        self.image, self.scale, self.path = image, float(scale), image.path
        self.width, self.height = round(image.width / scale), round(image.height / scale)
        self.um_per_px = None

    @property
    def decoded_mpx(self) -> float:
        """Millions of pixels: those of the image at hand."""
        return self.image.decoded_mpx

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a window, uint8 (height, width, 3), interpolated bilinearly, white outside the image."""
        from PIL import Image

        # One pixel more on each side: interpolation looks at neighbours.
        left, top = int(np.floor(x * self.scale)) - 1, int(np.floor(y * self.scale)) - 1
        right, bottom = int(np.ceil((x + width) * self.scale)) + 1, int(np.ceil((y + height) * self.scale)) + 1
        own = self.image.read_region(left, top, right - left, bottom - top)
        box = (x * self.scale - left, y * self.scale - top,
               (x + width) * self.scale - left, (y + height) * self.scale - top)  # fmt: skip
        return np.asarray(Image.fromarray(own).resize((width, height), Image.Resampling.BILINEAR, box=box))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the whole image, never enlarged, and the thumbnail's pixels per full-resolution pixel."""
        small, scale = self.image.thumbnail(min(max_side, max(self.image.width, self.image.height)))
        return small, scale * self.scale

    def release(self) -> None:
        """Forget decoded pixels."""
        if hasattr(self.image, "release"):
            self.image.release()
