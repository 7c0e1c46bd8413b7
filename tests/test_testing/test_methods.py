import argparse
import subprocess

import pytest

from mmkd.testing import benchmark_cost, benchmark_kitti, kitti_tiny
from mmkd.testing.methods import distilled_model, known_methods, method_distiller, needs_teacher


def test_plain_comes_first_and_every_method_file_is_known():
    assert known_methods()[0] == 'plain'
    assert {'ssim', 'l1', 'l2'} <= set(known_methods())


def test_ssim_and_its_controls_differ_in_the_loss_alone():
    ssim, l2 = method_distiller('ssim'), method_distiller('l2')
    assert ssim['connectors'] == l2['connectors']
    assert ssim['student_recorders'] == l2['student_recorders']
    mappings = [next(iter(method['loss_forward_mappings'].values())) for method in (ssim, l2)]
    assert mappings[0] == mappings[1]


@pytest.mark.parametrize('name', ['simm', 'plain'])
def test_refuses_what_is_no_method(name):
    with pytest.raises(ValueError, match=r"method must be one of \[.*'ssim'"):
        method_distiller(name)


def test_suggests_the_nearest_name():
    with pytest.raises(ValueError, match="got 'sim'; nearest: ssim"):
        method_distiller('sim')


def test_self_distillation_needs_no_teacher():
    assert [
        name for name in ('plain', 'plain-time', 'teacher', 'mssd', 'frskd.py', 'ssim', 'mkd') if needs_teacher(name)
    ] == [
        'ssim',
        'mkd',
    ]
    assert 'teacher' not in distilled_model(dict(type='X'), 'mssd')


def test_every_method_gets_its_algorithm_around_the_same_student():
    student, teacher = dict(type='X'), dict(teacher='t.py', teacher_ckpt='t.pth')
    for name in known_methods()[2:]:
        model = distilled_model(student, name, teacher)
        assert model['architecture'] == student
        assert ('teacher_ckpt' in model) == needs_teacher(name)


def test_a_method_with_a_teacher_is_not_built_without():
    with pytest.raises(ValueError, match='ssim needs a teacher'):
        distilled_model(dict(type='X'), 'ssim')


def test_modules_find_configs_and_tools_of_an_installed_package(tmp_path, monkeypatch):
    made = tmp_path / '.mim' / 'configs'
    (made / 'baselines').mkdir(parents=True)
    (made / 'baselines' / 'x_kitti.py').touch()
    for module in (kitti_tiny, benchmark_cost, benchmark_kitti):
        monkeypatch.setattr(module, 'config_root', lambda: made)
    assert kitti_tiny.shipped_configs() == [made / 'baselines' / 'x_kitti.py']
    assert benchmark_kitti.tool() == tmp_path / '.mim' / 'tools' / 'eval_kitti.py'
    started = []
    done = subprocess.CompletedProcess([], 0, stdout='1048576')
    monkeypatch.setattr(subprocess, 'run', lambda command, **_: started.extend(command) or done)
    args = argparse.Namespace(command=['x.py'], batch=[1])
    assert benchmark_cost.memory_in_own_process(args, 'plain', (64, 64), 1) == 1
    assert str(tmp_path / '.mim' / 'tools' / 'benchmark_cost.py') in started
