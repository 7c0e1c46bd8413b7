"""`SelfTeacherDistill` does not know that it holds a detector: the paper's own experiment, for a step on made data."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkd.models.algorithms.self_teacher_distill import SelfTeacherDistill
from mmkd.testing.methods import config_root


def grads(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def check_step(model: SelfTeacherDistill, inputs: Tensor, samples: list) -> dict:
    """Losses of a step; targets never move the self-teacher, its own loss moves the backbone."""
    model.train()
    losses = model(inputs, samples, mode='loss')
    sum(value for name, value in losses.items() if name.startswith('distill.')).backward(retain_graph=True)
    assert grads(model.self_teacher) == 0 and grads(model.backbone) > 0
    model.zero_grad()
    losses['self_teacher.loss'].backward(retain_graph=True)
    assert grads(model.self_teacher) > 0 and grads(model.backbone) > 0 and grads(model.head) == 0
    model.zero_grad()
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    return losses


def test_a_classifier_that_is_not_of_openmmlab_learns_from_a_self_teacher():
    """A model of ten lines with `backbone`, `head` and `loss`: nothing of a detector is asked for."""
    from mmengine.model import BaseModel

    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.first(x).relu()
            return first, self.second(first).relu()

    class Head(nn.Module):
        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.fc = nn.Linear(in_channels, 5)

        def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
            return self.fc(feats[-1].mean((2, 3)))

    class Classifier(BaseModel):
        def __init__(self, backbone: dict, head: dict) -> None:
            super().__init__()
            self.backbone, self.head = MODELS.build(backbone), MODELS.build(head)

        def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> object:
            logits = self.head(self.backbone(inputs))
            return (
                dict(loss=nn.functional.cross_entropy(logits, torch.stack(data_samples))) if mode == 'loss' else logits
            )

    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / 'frskd_classifier.py').distiller
    model = SelfTeacherDistill(
        architecture=dict(type=Classifier, backbone=dict(type=Stages), head=dict(type=Head, in_channels=8)),
        self_teacher=dict(type='mmkd.BiFPNSelfTeacher', width=2),
        source='backbone',
        changes={'head.in_channels': 16},
        distiller=distiller,
    )
    losses = check_step(model, torch.randn(3, 3, 33, 50), [torch.tensor(i) for i in (0, 3, 4)])
    assert {'distill.loss_frskd_at_p1', 'distill.loss_frskd_at_p2', 'distill.loss_frskd_kd'} < set(losses)


def test_the_papers_experiment_takes_a_step_on_made_data():
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    cfg = Config.fromfile(config_root() / 'frskd' / 'frskd_resnet-18_b128-200e_cifar100.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        plain = MODELS.build(copy.deepcopy(cfg.model.architecture))
        model = MODELS.build(copy.deepcopy(cfg.model))
        model.init_weights()
        assert sum(p.numel() for p in plain.parameters()) == 11_220_132
        assert sum(p.numel() for p in model.self_teacher.parameters()) == 6_375_794
        assert list(model.state_dict()) == list(plain.state_dict())
        images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        samples = [DataSample().set_gt_label(label) for label in (0, 5, 50, 99)]
        data = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
        losses = check_step(model, data['inputs'], data['data_samples'])
    assert {f'distill.loss_frskd_at_p{level}' for level in range(4)} < set(losses)
