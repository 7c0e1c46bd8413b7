"""From which checkpoint a training starts: of the same network, and of a run of the same kind."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmkd.engine.launch import prepare_training
from mmkd.engine.preflight import PreflightError, check_model, find_problems
from mmkd.engine.preflight_start import read_start
from mmkd.testing.toy_detectors import toy_detector

from .conftest import SMALL


def starting_from(cfg: Config, state: dict, path: Path) -> str:
    """What is said about a configuration that starts from these tensors."""
    torch.save(dict(state_dict=state), path)
    cfg = copy.deepcopy(cfg)
    cfg.load_from = str(path)
    return '\n'.join(find_problems(cfg))


@pytest.mark.parametrize('distilled', [True, False])
def test_a_start_from_another_network_is_refused(distilled: bool, distill_config, plain_config, tmp_path) -> None:
    cfg = distill_config(epochs=1) if distilled else plain_config(epochs=1)
    other = {
        f'model.{key}': value for key, value in MODELS.build(toy_detector('retinanet', **SMALL)).state_dict().items()
    }
    problem = starting_from(cfg, other, tmp_path / 'other.pth')
    own = [key.removeprefix('model.') for key in other if 'num_batches_tracked' not in key]
    assert f'other.pth is of another network: it fills 0 of the {len(own)} tensors of the student' in problem
    assert 'of its own fit nowhere, such as model.' in problem and f'Missing are {len(own)}, such as ' in problem


def test_a_start_from_a_part_of_the_network_is_taken(distill_config, tmp_path) -> None:
    """A backbone, other classes, what DataParallel wrote."""
    cfg = distill_config(epochs=1)
    state = MODELS.build(copy.deepcopy(cfg.model.architecture)).state_dict()
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    classes = {key: value[:1] if 'retina_cls' in key else value for key, value in state.items()}
    parallel = {f'module.{key}': value for key, value in state.items()}
    for number, part in enumerate((state, backbone, classes, parallel)):
        assert starting_from(cfg, part, tmp_path / f'{number}.pth') == ''


def test_the_tenth_is_counted_in_tensors_that_are_filled(distill_config, tmp_path) -> None:
    cfg = distill_config(epochs=1)
    state = MODELS.build(copy.deepcopy(cfg.model.architecture)).state_dict()
    keys = [key for key in state if 'num_batches_tracked' not in key]
    enough = -(-len(keys) // 10)
    few = {key: state[key] for key in keys[: enough - 1]}
    assert f'fills {enough - 1} of the {len(keys)}' in starting_from(cfg, few, tmp_path / 'few.pth')
    assert starting_from(cfg, few | {keys[enough]: state[keys[enough]]}, tmp_path / 'enough.pth') == ''


def test_the_check_leaves_the_network_as_it_was_built(distill_config, tmp_path, monkeypatch) -> None:
    cfg, seen = distill_config(epochs=1), []

    def build(model: dict) -> torch.nn.Module:
        seen.append(made := real(model))
        return made

    real = MODELS.build
    state = real(copy.deepcopy(cfg.model.architecture)).state_dict()
    torch.save(dict(state_dict={key: value + 1 for key, value in state.items()}), tmp_path / 's.pth')
    cfg.load_from = str(tmp_path / 's.pth')
    monkeypatch.setattr(MODELS, 'build', build)
    start = read_start(cfg)
    for one in (None, start):
        torch.manual_seed(0)
        assert list(check_model(cfg, start=one)) == []
    algorithms = [one for one in seen if hasattr(one, 'distiller')]
    first, second = (one.state_dict() for one in algorithms)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.fixture
def distilled_run(distill_config: Callable, run: Callable, tmp_path: Path) -> Path:
    run(distill_config(epochs=1), tmp_path / 'run')
    return tmp_path / 'run'


def test_a_plain_run_does_not_go_on_from_a_distillation(distilled_run, plain_config, run, tmp_path) -> None:
    """By the path, or as the latest checkpoint of the work directory; its student's weights alone are welcome."""
    name = str(distilled_run / 'epoch_1.pth')
    for folder, resume in ((distilled_run, 'auto'), (tmp_path / 'new', name)):
        with pytest.raises(PreflightError, match=r'epoch_1\.pth was written by a distillation.*use load_from'):
            run(plain_config(epochs=2), folder, resume=resume)
    assert not (tmp_path / 'new').exists()
    cfg = plain_config(epochs=2)
    cfg.load_from = name
    prepare_training(cfg, config_name='x', work_dir=str(tmp_path / 'new'))
    assert find_problems(cfg) == []


def test_a_plain_run_goes_on_from_a_plain_one(plain_config, run, tmp_path) -> None:
    run(plain_config(epochs=1), tmp_path / 'run')
    assert run(plain_config(epochs=2), tmp_path / 'run', resume='auto').epoch == 2
