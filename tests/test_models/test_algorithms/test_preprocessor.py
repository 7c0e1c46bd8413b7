"""Which preprocessor a distilled student trains, is tested and is exported with: that of its plain training."""

import copy

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS

from mmkd.engine.mmdet_config import plain_model
from mmkd.engine.student_config import student_config
from mmkd.registry import MODELS

from .conftest import build_teacher, neck_distiller, small

OTHER = dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], pad_size_divisor=32)


@pytest.mark.parametrize('own', [True, False])
def test_a_students_own_counts_and_the_runs_serves_one_without(own: bool) -> None:
    """MMEngine gives a model the top-level `data_preprocessor` where it has none; an algorithm has none."""
    student = ConfigDict(small('retinanet'))
    expected = list(student.data_preprocessor.mean) if own else OTHER['mean']
    if not own:
        student.pop('data_preprocessor')
    model = dict(type='mmkd.TeacherStudentDistill', architecture=student, teacher=build_teacher('retinanet'))
    model |= dict(distiller=neck_distiller(), data_preprocessor=copy.deepcopy(OTHER))
    algorithm = MODELS.build(model)
    assert algorithm.data_preprocessor.mean.flatten().tolist() == pytest.approx(expected)
    assert algorithm.architecture.data_preprocessor is algorithm.data_preprocessor
    cfg = Config(dict(model=dict(model, teacher='t.py'), data_preprocessor=copy.deepcopy(OTHER)))
    for plain in (student_config(cfg).model.to_dict(), plain_model(cfg)):
        built = ROOT_MODELS.build(dict(plain, _scope_='mmdet'))
        assert built.data_preprocessor.mean.flatten().tolist() == pytest.approx(expected)
