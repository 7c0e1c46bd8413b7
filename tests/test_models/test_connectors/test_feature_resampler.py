"""`FeatureResampler`. Shapes: `N` images, `C` channels, `H, W` cells."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmkd.models.connectors.feature_resampler import FeatureResampler, _sent

MODES = ['mask', 'down_up', 'none']


def build(mode: str, **options) -> FeatureResampler:
    torch.manual_seed(0)
    return FeatureResampler(**{'in_channels': 3, 'out_channels': 5, 'mode': mode, 'seed': 7} | options)


def feature(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 9, 14, generator=torch.Generator().manual_seed(seed))


def test_mask_and_regeneration_equal_an_independent_reading() -> None:
    module = build('mask', ratio=0.4)
    aligned = F.conv2d(feature(), module.align.weight, module.align.bias)
    kept = copy.deepcopy(module)._draw(2, 1, 9, 14) >= 0.4
    first, _, second = module.generate
    hidden = F.conv2d(aligned * kept, first.weight, first.bias, padding=1).relu()
    torch.testing.assert_close(module(feature()), F.conv2d(hidden, second.weight, second.bias, padding=1))


def test_a_cell_is_dropped_with_all_its_channels() -> None:
    module = build('mask', in_channels=5, ratio=0.5)
    seen = []
    module.generate.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(torch.ones(2, 5, 9, 14))
    assert torch.equal(seen[0].amax(1), seen[0].amin(1))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize('ratio', [0.0, 0.25, 0.65])
def test_the_share_of_dropped_cells_is_the_ratio(ratio: float) -> None:
    module = build('mask', in_channels=1, out_channels=1, ratio=ratio)
    dropped = 1 - module._drop_cells(torch.ones(4, 1, 100, 100)).mean().item()
    assert dropped == pytest.approx(ratio, abs=0.01)


def test_down_up_loses_detail_and_keeps_flat_maps() -> None:
    module = build('down_up', in_channels=3, out_channels=3, ratio=0.8)
    outputs = [module(feature()) for _ in range(5)]
    assert all(output.shape == feature().shape for output in outputs)
    assert min(output.var().item() for output in outputs) < 0.8 * feature().var().item()
    flat = torch.full((1, 3, 7, 10), 2.5)
    torch.testing.assert_close(module(flat), flat)


@pytest.mark.parametrize('mode', ['mask', 'down_up'])
def test_training_draws_anew_and_evaluation_is_deterministic(mode: str) -> None:
    module = build(mode)
    assert not torch.equal(module(feature()), module(feature()))
    module.eval()
    before = module.seed_and_draws.clone()
    assert torch.equal(module(feature()), module(feature()))
    assert torch.equal(module.seed_and_draws, before)


def test_evaluation_neither_drops_nor_samples_down() -> None:
    assert torch.equal(build('down_up').eval()(feature()), build('none').eval()(feature()))
    module = build('mask').eval()
    torch.testing.assert_close(module(feature()), module.generate(module.align(feature())))


@pytest.mark.parametrize('mode', ['mask', 'down_up'])
def test_same_seed_same_numbers_other_seed_other_numbers(mode: str) -> None:
    assert torch.equal(build(mode)(feature()), build(mode)(feature()))
    assert not torch.equal(build(mode)(feature()), build(mode, seed=8)(feature()))


@pytest.mark.parametrize('mode', ['mask', 'down_up'])
def test_global_random_state_is_untouched_by_a_forward(mode: str) -> None:
    module = build(mode)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module(feature())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_it_is_drawn_once_from_the_global_generator() -> None:
    torch.manual_seed(0)
    first, second = (FeatureResampler(in_channels=1, out_channels=1) for _ in range(2))
    torch.manual_seed(0)
    again = FeatureResampler(in_channels=1, out_channels=1)
    assert first.seed_and_draws[0] == again.seed_and_draws[0] != second.seed_and_draws[0]


@pytest.mark.parametrize('mode', ['mask', 'down_up'])
def test_a_resumed_module_and_a_copy_continue_the_same_row(mode: str) -> None:
    module = build(mode)
    module(feature())
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    resumed = build(mode, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(module)
    expected = [module(feature()), module(feature())]
    for other in (resumed, copied):
        assert all(torch.equal(other(feature()), value) for value in expected)


def test_ranks_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = build('mask')(feature())
    monkeypatch.setattr('mmkd.models.connectors.feature_resampler.get_rank', lambda: 1)
    assert not torch.equal(build('mask')(feature()), alone)


@pytest.mark.parametrize('mode', MODES)
def test_equal_channels_need_no_alignment_and_one_cell_works(mode: str) -> None:
    module = build(mode, in_channels=5)
    assert isinstance(module.align, nn.Identity)
    assert module(torch.randn(1, 5, 1, 1)).shape == (1, 5, 1, 1)
    assert sum(p.numel() for p in module.parameters()) == (2 * (5 * 5 * 9 + 5) if mode == 'mask' else 0)


@pytest.mark.parametrize('mode', MODES)
def test_gradients_are_right(mode: str) -> None:
    module = build(mode).double().eval()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(module, x.requires_grad_())


@pytest.mark.parametrize('mode', MODES)
def test_every_parameter_is_trained(mode: str) -> None:
    module = build(mode)
    module(feature()).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize(('device', 'pinned'), [('cuda', True), ('cpu', False), ('meta', False)])
def test_only_pinned_memory_is_sent_to_a_gpu(device: str, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from pageable memory may wait for the device, whatever `non_blocking` says."""
    done = []

    def pin(value: torch.Tensor) -> torch.Tensor:
        done.append('pinned')
        return value

    def to(value: torch.Tensor, where: torch.device, non_blocking: bool) -> torch.Tensor:
        done.append((where.type, non_blocking))
        return value

    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin)
    monkeypatch.setattr(torch.Tensor, 'to', to)
    _sent(torch.ones(2), torch.device(device))
    assert done == ['pinned'] * pinned + [(device, True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_drops_the_same_cells_on_a_gpu() -> None:
    ones = torch.ones(2, 1, 9, 14)
    assert torch.equal(build('mask')._drop_cells(ones.cuda()).cpu(), build('mask')._drop_cells(ones))


def test_refuses_wrong_hyper_parameters() -> None:
    with pytest.raises(ValueError, match="mode must be 'mask', 'down_up' or 'none', got 'drop'"):
        build('drop')
    with pytest.raises(ValueError, match=r'ratio must be in \[0, 1\), got 1.0'):
        build('mask', ratio=1.0)
