"""MMRazor's own losses and connectors in the place of this project's, as the method files to compare with have them."""

import pytest
import torch
from mmengine.registry import MODELS

from mmkd.testing.methods import config_root, method_distiller

from .conftest import batch, build_algorithm, build_teacher, losses_of


@pytest.mark.parametrize('method', ['cwd', 'pkd', 'mgd'])
@pytest.mark.parametrize('family', ['retinanet', 'yolox'])
def test_a_loss_of_mmrazor_reaches_every_level_of_the_student(family, method):
    model = build_algorithm(family, method_distiller(method), build_teacher(family, channels=32))
    losses = {name: value for name, value in losses_of(model, batch()).items() if 'loss_' + method in name}
    assert len(losses) == len(model.distiller.level_names[f'loss_{method}'])
    assert all(value > 0 for value in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for name, p in model.named_parameters() if 'neck' in name]
    assert gradients and all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_pkd_is_nan_for_one_cell_of_one_image_alone_and_its_file_says_so():
    distiller = method_distiller('pkd')
    loss = MODELS.build(distiller['distill_losses']['loss_pkd'])
    pair = [torch.randn(2, 8, 1, 1), torch.randn(2, 8, 1, 1)]
    assert loss(pair[:1], pair[1:])[0].isfinite()
    assert loss([pair[0][:1]], [pair[1][:1]])[0].isnan()
    text = (config_root() / '_base_' / 'methods' / 'pkd.py').read_text()
    assert 'one cell' in text and 'NaN' in text and 'run over the batch of one process' in text


def test_its_random_masks_do_not_touch_the_students_random_numbers():
    model = build_algorithm('retinanet', method_distiller('mgd'), build_teacher('retinanet', channels=32))
    model.train()
    torch.manual_seed(3)
    losses_of(model, batch())
    after = torch.rand(4)
    torch.manual_seed(3)
    losses_of(model.architecture, batch())
    assert torch.equal(after, torch.rand(4))


def test_its_random_masks_change_from_step_to_step_and_come_again_after_a_resume():
    model = build_algorithm('retinanet', method_distiller('mgd'), build_teacher('retinanet', channels=32))
    model.eval()  # the student gives the same features each time; the masks of MGD belong to training
    model.distiller.train()
    losses = {}
    for step in (7, 8, 7):
        begin = model.distiller.begin_step
        model.distiller.begin_step = lambda epoch, iteration, begin=begin, step=step: begin(epoch, step)
        losses.setdefault(step, []).append(losses_of(model, batch())['distill.loss_mgd_p3'].item())
        model.distiller.begin_step = begin
    assert losses[7][0] == losses[7][1] != losses[8][0]
