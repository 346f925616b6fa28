"""Several frozen models that answer as one: the plain mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdpipe.errors import ModelError
from kdpipe.models import Preset, probe
from kdpipe.store.manifest import digest_json
from kdpipe.store.sections import Teacher
from kdpipe.teacher.forward import Forward
from kdpipe.views import Geometry


class Ensemble:
    """Members that see the same pixels, each through its own normalisation, and whose logits are averaged.

    The mean is taken in float32 in the order of the members, with equal weights.
    """

    def __init__(self, members: Sequence[Forward]) -> None:
        """Gather at least one member; all run on one device.

        Raises:
            ModelError: two members want images of other sizes, or resampled in another way.
        """
        first = members[0]
        for other in members[1:]:
            wanted, found = Geometry.of(first.preset), Geometry.of(other.preset)
            if found != wanted:
                raise ModelError(
                    f"{first.model.name} sees {_shown(wanted)}, {other.model.name} {_shown(found)}: an average needs "
                    "teachers that are shown the same pixels. Give --input-size, or average teachers of one geometry."
                )
        self.members = tuple(members)
        self.device = first.device
        self.precision = first.precision

    @property
    def identity(self) -> Teacher:
        """``average(NAME, NAME, ...)``; the digest covers the members' digests in order.

        The preset is the first member's, whose geometry all of them share, and has all of them under ``members``.
        """
        parts = [member.identity for member in self.members]
        return Teacher(
            name=f"average({', '.join(part.name for part in parts)})",
            digest=digest_json({"average": [part.digest for part in parts]}),
            preset={**parts[0].preset, "members": [part.preset for part in parts]},
            parameters=sum(part.parameters for part in parts),
        )

    @property
    def preset(self) -> Preset:
        """The first member's evaluation view; its geometry is everyone's."""
        return self.members[0].preset

    def probe(self) -> list[float]:
        """Return the first averaged logits of one fixed synthetic image, to 4 significant digits."""
        return probe(*(member.model for member in self.members))

    @property
    def signals(self) -> dict[str, tuple[int, ...]]:
        """None: features have no mean, as each member's have a space of their own."""
        return {}

    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean logits, and no signals."""
        return self(pixels), {}

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean of the members' float32 logits ``(n, classes)``, for uint8 ``(n, 3, H, W)`` pixels."""
        return torch.stack([member(pixels) for member in self.members]).mean(dim=0)


def _shown(geometry: Geometry) -> str:
    return f"{geometry.size} px cut from {geometry.resize} ({geometry.interpolation})"
