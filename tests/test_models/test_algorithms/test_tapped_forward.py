"""`TappedForward`: how often a probe lets the recorded layers run."""

import torch
from mmengine.model import BaseModel
from torch import nn

from mmkd.models.algorithms.tapped_forward import TappedForward, blank_samples


class TwoSteps(BaseModel):
    """A layer that runs twice in the features, and a head that the features alone do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)

    def extract_feat(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(inputs))

    def forward(self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = 'tensor') -> torch.Tensor:
        return self.head(self.extract_feat(inputs))


def test_a_second_attempt_leaves_no_records_of_the_first() -> None:
    model, records = TwoSteps(), []
    model.shared.register_forward_hook(lambda module, inputs, outputs: records.append(outputs))
    forward = TappedForward(model, ['shared', 'head'])
    inputs = torch.zeros(1, 3, 8, 8)
    forward.probe(inputs, blank_samples(inputs), forget=records.clear)
    assert forward.whole
    assert len(records) == 2
    records.clear()
    assert forward(inputs, None) is None
    assert len(records) == 2
