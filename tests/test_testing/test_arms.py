import pytest
from mmengine.registry import MODELS, init_default_scope

from mmkd.testing.arms import parse_arm
from mmkd.testing.methods import distilled_model
from mmkd.testing.toy_detectors import toy_detector

TEACHER = dict(teacher='t.py', teacher_ckpt='t.pth')


def model_of(text, student=None):
    arm = parse_arm(text)
    return arm.apply(distilled_model(student or dict(type='X'), arm.method, TEACHER))


def test_a_method_alone_is_an_arm_of_its_name():
    arm = parse_arm('ssim')
    assert (arm.name, arm.method, arm.options) == ('ssim', 'ssim', ())


def test_an_option_reaches_the_model_with_or_without_its_prefix():
    for prefix in ('', 'model.'):
        model = model_of(f'weak=ssim,{prefix}distiller.distill_losses.loss_ssim.loss.loss_weight=0.5')
        assert model['distiller']['distill_losses']['loss_ssim']['loss']['loss_weight'] == 0.5
    assert model_of('ssim')['distiller']['distill_losses']['loss_ssim']['loss']['loss_weight'] != 0.5


def test_an_option_reaches_the_element_of_a_list():
    model = model_of('ikd-plain=ikd,distiller.connectors.resample.0.connector.mode=none')
    assert model['distiller']['connectors']['resample'][0]['connector']['mode'] == 'none'
    assert model['distiller']['connectors']['resample'][1] == model_of('ikd')['distiller']['connectors']['resample'][1]


def test_a_value_in_brackets_may_hold_commas():
    arm = parse_arm('x=ssim,distiller.distill_losses.loss_ssim.level_weights=[1,0,0,0,0]')
    assert len(arm.options) == 1
    assert model_of('x=ssim,distiller.distill_losses.loss_ssim.level_weights=[1,0,0,0,0]')['distiller'][
        'distill_losses'
    ]['loss_ssim']['level_weights'] == [1, 0, 0, 0, 0]


def test_a_misspelt_option_is_refused_by_the_part_that_does_not_exist():
    with pytest.raises(ValueError, match=r"no 'distiller.distill_losses.loss_sim'.*loss_ssim"):
        model_of('x=ssim,distiller.distill_losses.loss_sim.loss.loss_weight=0')
    with pytest.raises(ValueError, match=r"no 'distiller.connectors.resample.7'"):
        model_of('x=ikd,distiller.connectors.resample.7.connector.mode=none')


def test_the_self_teacher_may_differ_from_the_student():
    init_default_scope('mmdet')
    student = toy_detector('retinanet', width=8, channels=16, convs=1)
    model = model_of('x=frskd_dense,changes.bbox_head.feat_channels=24', student)
    assert model['changes'] == {'bbox_head': {'feat_channels': 24}}
    network = MODELS.build(model).self_teacher.model
    assert network.bbox_head.cls_convs[0].conv.out_channels == 24
    with pytest.raises(ValueError, match=r"no 'bbox_hed' in the student.*bbox_head"):
        model_of('x=frskd_dense,changes.bbox_hed.feat_channels=24', student)
    with pytest.raises(ValueError, match=r"no 'changes' in its model"):
        model_of('x=ssim,changes.bbox_head.feat_channels=24')


@pytest.mark.parametrize('text', ['x=', '../x', 'x=ssim,loss_weight', '=ssim', 'x=ssim,a='])
def test_refuses_what_is_no_arm(text):
    with pytest.raises(ValueError, match='an arm is|an option is'):
        parse_arm(text)


@pytest.mark.parametrize('text', ['plain=ssim', 'plain-time=plain', 'plain=plain-time,as=ssim'])
def test_a_name_of_plain_training_is_no_name_for_something_else(text):
    with pytest.raises(ValueError, match='is the name of plain training'):
        parse_arm(text)


def test_an_arm_may_have_a_learning_rate_of_its_own():
    arm = parse_arm('fast=ssim,lr=4e-3,distiller.distill_losses.loss_ssim.loss.loss_weight=0.5')
    assert arm.lr == 0.004
    assert arm.options[0] == ('lr', '4e-3')
    model = arm.apply(distilled_model(dict(type='X'), arm.method, TEACHER))
    assert model == model_of('weak=ssim,distiller.distill_losses.loss_ssim.loss.loss_weight=0.5')
    assert parse_arm('ssim').lr is None


@pytest.mark.parametrize('rate', ['0', '-1', 'inf', 'nan', 'fast'])
def test_a_learning_rate_that_is_none_is_refused(rate):
    for key in ('lr', 'model.lr'):
        with pytest.raises(ValueError, match=rf"fast: lr must be a positive number, got '{rate}'"):
            parse_arm(f'fast=plain,{key}={rate}')


@pytest.mark.parametrize('name', ['plain', 'plain-time'])
def test_plain_itself_has_the_learning_rate_that_it_is_compared_at(name):
    with pytest.raises(ValueError, match=f'{name} is trained at the learning rate of --lr'):
        parse_arm(f'{name}={name},lr=0.004')


@pytest.mark.parametrize('again', ['lr=0.004', 'model.lr=0.004'])
def test_an_option_that_is_given_twice_is_refused(again):
    with pytest.raises(ValueError, match='fast: lr is given twice'):
        parse_arm(f'fast=ikd,lr=0.002,{again}')
