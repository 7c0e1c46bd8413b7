"""The teacher's score on the whole validation set, measured once, beside every score of the student."""

import copy

import pytest
from mmengine.registry import HOOKS

from mmkd.compat import load_checkpoint_file as load


def test_the_teachers_whole_score_stands_beside_the_students(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    for model in (cfg.model.architecture, cfg.model.teacher):
        model.test_cfg.score_thr = 0.0
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images='all')
    cfg.log_level = 'INFO'
    longer = copy.deepcopy(cfg)
    longer.train_cfg.max_epochs = 2
    run(cfg, tmp_path / 'run')
    checkpoint = str(tmp_path / 'run' / 'epoch_1.pth')
    score = load(checkpoint)['message_hub']['runtime_info']['mmkd_teacher_scores']['coco/bbox_mAP']
    assert score > 0
    run(longer, tmp_path / 'resumed', resume=checkpoint)
    for folder, measured in (('run', 1), ('resumed', 0)):
        log = next((tmp_path / folder).rglob('*.log')).read_text()
        assert log.count('Teacher on all validation images: ') == measured
        (line,) = [line for line in log.splitlines() if 'Student and teacher: ' in line]
        assert f' and {score:.3f} (' in line.split('coco/bbox_mAP ')[1]


@pytest.mark.parametrize('value', [-1, 'some'])
def test_a_wrong_number_of_images_for_the_teacher_is_refused(value):
    with pytest.raises(ValueError, match='num_images must be'):
        HOOKS.build(dict(type='mmkd.TeacherCheckHook', num_images=value))
