"""The teacher's RoI head on the student's sampled proposals."""

from collections.abc import Iterable

from torch import Tensor, nn

PREFIX = 'roi_head.'


class RoIForward:
    """Runs a two-stage teacher's RoI head on given proposals, so that logits are compared RoI by RoI.

    Args:
        teacher: a two-stage detector of MMDetection with a single RoI head.
        sources: names of the teacher's recorded layers; those of the RoI head run here.

    Raises:
        ValueError: such a layer is recorded, but the teacher has no single RoI head.
    """

    def __init__(self, teacher: nn.Module, sources: Iterable[str]) -> None:
        self.teacher = teacher
        self.sources = [source for source in sources if source.startswith(PREFIX)]
        if self.sources and isinstance(getattr(teacher.roi_head, 'bbox_head', None), nn.ModuleList | None):
            raise ValueError(
                f"The RoI head of {type(teacher).__name__} has several stages; its logits on the student's proposals "
                'are not defined. Record the neck, or take a teacher with a single RoI head.'
            )

    def __bool__(self) -> bool:
        """Whether anything of the RoI head is recorded."""
        return bool(self.sources)

    def __call__(self, features: tuple[Tensor, ...], rois: Tensor) -> None:
        """Run box head and extractor; the recorders keep what they record.

        Args:
            features: the teacher's pyramid.
            rois: (R, 5) image index and box in px of the padded input.
        """
        self.teacher.roi_head._bbox_forward(features, rois)
