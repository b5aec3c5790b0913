"""The options of a multi-task model, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histocrypt.errors import InputError, unknown_name
from histocrypt.models.he2gene import BACKBONES
from histocrypt.targets.labels import Label
from histocrypt.training.spatial import NEIGHBOURS


@dataclass(frozen=True)
class Plan:
    """The options of the model, checked."""

    backbone: str = "resnet18"  # resnet18, resnet50, or a frozen encoder by name
    pretrained: bool = False  # start from ImageNet weights, where torch's cache folder has them
    hidden: int = 256  # width of the shared layer on a frozen encoder
    dropout: float = 0.0
    aux_weight: float = 1.0  # of the other genes; 0: no such head
    aux_rank: int = 128  # of their head; 0: a full matrix
    label: str | None = None  # obs:COLUMN, or obsm:MATRIX/COLUMN
    label_is: tuple[str, ...] = ()  # values that mean tumour
    label_above: float | None = None  # numbers above this mean tumour
    tumour_weight: float = 1.0
    spatial_weight: float = 0.01  # of the spatial term; 0 switches it off
    neighbours: str = "label"  # label, predicted or image: see training.spatial
    patch: int = 8  # spots in a connected patch of a batch
    average_symmetries: bool = False  # predictions are means over the eight symmetries of a tile

    @classmethod
    def of(cls, options: dict[str, Any]) -> Plan:
        """Return the options checked; the first bad value is an `InputError` that names it."""
        given = dict(options)
        if "label_is" in given:
            words = given["label_is"]
            given["label_is"] = tuple(map(str, words if isinstance(words, list | tuple) else [words]))
        plan = cls(**given)
        for name, least in (("hidden", 1), ("aux_rank", 0), ("patch", 1)):
            _check(name, getattr(plan, name), int, least, "a whole number")
        for name in ("aux_weight", "tumour_weight", "spatial_weight"):
            _check(name, getattr(plan, name), int | float, 0, "a number")
        if isinstance(plan.dropout, bool) or not isinstance(plan.dropout, int | float) or not 0 <= plan.dropout < 1:
            msg = "is not a share"
            raise InputError(msg, field="models.he2gene.dropout", value=plan.dropout, expected="0 to below 1")
        if plan.label is not None and not isinstance(plan.label, str):
            msg = "does not say where a label is"
            raise InputError(msg, field="models.he2gene.label", value=plan.label, expected="obs:COLUMN")
        for name in ("pretrained", "average_symmetries"):
            if not isinstance(getattr(plan, name), bool):
                msg = "is neither true nor false"
                raise InputError(msg, field=f"models.he2gene.{name}", value=getattr(plan, name))
        if plan.neighbours not in NEIGHBOURS:
            raise unknown_name("neighbours", str(plan.neighbours), NEIGHBOURS, field="models.he2gene.neighbours")
        if not plan.is_trained:
            from histocrypt.encoders import encoder_of

            encoder_of(plan.backbone)
            for name in ("pretrained", "average_symmetries"):
                if getattr(plan, name):
                    msg = f"is for a trained encoder, and {plan.backbone} is frozen"
                    raise InputError(msg, field=f"models.he2gene.{name}", value=True)
        plan.where()
        return plan

    @property
    def is_trained(self) -> bool:
        """Whether the encoder is trained."""
        return self.backbone in BACKBONES

    def where(self) -> Label | None:
        """Return where the label is found, if one is named."""
        return None if self.label is None else Label(self.label, self.label_is, self.label_above)


def _check(name: str, value: object, kind: Any, least: float, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or value < least:
        msg = "has a wrong value"
        raise InputError(msg, field=f"models.he2gene.{name}", value=value, expected=f"{what} from {least}")
