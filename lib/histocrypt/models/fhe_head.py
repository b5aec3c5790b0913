"""FheHead: a linear head on frozen features, of which the encrypted evaluation sees ciphertexts only.

The features come from a public encoder, so the key owner can compute them in the clear on its own machine; what the
model's owner keeps to itself is the head. It is frozen-encoder ridge, on a smaller encoder that a laptop runs at tens
of tiles a second.
"""

from __future__ import annotations

from histocrypt.models.encoder_ridge import EncoderRidge


class FheHead(EncoderRidge):
    """Frozen-encoder ridge for encrypted evaluation: one level, several spots in a ciphertext."""

    def __init__(
        self, *, encoder: str = "efficientnet_lite0_128", components: int = 256, normalise_by_section: bool = True
    ) -> None:
        super().__init__(encoder=encoder, components=components, normalise_by_section=normalise_by_section)
