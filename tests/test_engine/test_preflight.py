"""What `tools/train.py` looks at before it writes anything: KITTI's files, the step on a made image, who speaks."""

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmkd import process_ranks
from mmkd.engine import command_line, preflight
from mmkd.engine.command_line import run_command
from mmkd.engine.config_rules import evaluator_of_another_set, evaluator_of_several_sets
from mmkd.engine.dry_step import made_batch, step_problem
from mmkd.engine.preflight import PreflightError
from mmkd.engine.preflight_data import check_data, classes_numbered_otherwise
from mmkd.engine.testing import augment
from mmkd.testing.methods import distilled_model
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.toy_kitti import make_toy_kitti

SMALL = dict(width=8, channels=16, convs=1)


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    return make_toy_kitti(tmp_path / 'kitti')


def said(root: Path, **more: object) -> str:
    dataset = dict(type='mmkd.KittiDataset', data_root=str(root), ann_file='ImageSets/train.txt') | more
    return '\n'.join(check_data(Config(dict(train_dataloader=dict(dataset=dataset)))))


def split(root: Path, *names: str) -> None:
    (root / 'ImageSets/train.txt').write_text('\n'.join(names) + '\n')


def test_right_kitti_folders_pass(kitti: Path) -> None:
    assert said(kitti) == ''
    assert said(kitti, ann_file=['ImageSets/train.txt', 'ImageSets/val.txt']) == ''
    assert said(kitti, ann_file='') == ''


@pytest.mark.parametrize('name', ['../../../etc/passwd', '/etc/passwd', '../000000'])
def test_a_kitti_frame_outside_the_folders_is_refused(name: str, kitti: Path) -> None:
    split(kitti, '000000', name)
    assert f'train.txt:2: expected one frame name, found {name!r}' in said(kitti)


@pytest.mark.parametrize('name', ['..', '000099'])
def test_a_kitti_frame_that_is_not_there_is_refused(name: str, kitti: Path) -> None:
    split(kitti, '000000', name)
    text = said(kitti)
    assert f'train.txt names 1 frames without image in {kitti}/training/image_2, such as {name}.' in text
    assert f'without label file in {kitti}/training/label_2, such as {name}.' in text


def test_missing_kitti_folders_are_named(kitti: Path) -> None:
    assert 'the image folder' in said(kitti, data_prefix=dict(img='training/image_3'))
    assert 'tain.txt does not exist; nearest: train.txt' in said(kitti, ann_file=['ImageSets/tain.txt'])


def coco_said(kind: str, content: object, folder: Path, **more: object) -> str:
    (folder / 'train.json').write_text(content if isinstance(content, str) else json.dumps(content))
    dataset = dict(type=kind, data_root=str(folder), ann_file='train.json', metainfo=dict(classes=('a',))) | more
    return '\n'.join(check_data(Config(dict(train_dataloader=dict(dataset=dataset)))))


@pytest.mark.parametrize(
    ('kind', 'content'),
    [
        ('BaseDetDataset', dict(metainfo=dict(classes=['a']), data_list=[])),
        ('ODVGDataset', '{"filename": "x.jpg"}\n{"filename": "y.jpg"}\n'),
        ('LVISV1Dataset', dict(categories=[dict(name='a')], images=[dict(coco_url='http://x/train2017/1.jpg')])),
        ('Objects365V2Dataset', dict(categories=[dict(name='a')], images=[dict(file_name='images/v1/patch0/1.jpg')])),
    ],
)
def test_data_that_are_no_plain_coco_files_are_left_to_their_data_set(
    kind: str, content: object, tmp_path: Path
) -> None:
    assert coco_said(kind, content, tmp_path) == ''
    assert coco_said('CocoDataset', content, tmp_path) != '', 'what is left out there is a mistake in a COCO file'


def test_data_on_another_machine_are_not_called_missing(tmp_path: Path) -> None:
    remote = dict(backend='petrel')
    thing = dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], area=12)
    image = dict(id=1, file_name='1.jpg', width=10, height=10)
    content = dict(categories=[dict(id=1, name='a')], images=[image], annotations=[thing])
    load = [dict(type='LoadImageFromFile', backend_args=remote)]
    assert coco_said('CocoDataset', content, tmp_path, data_root='s3://bucket/coco') == ''
    assert coco_said('CocoDataset', content, tmp_path, data_root='coco', backend_args=remote) == ''
    assert coco_said('CocoDataset', content, tmp_path, pipeline=load) == ''
    assert '1.jpg does not exist' in coco_said('CocoDataset', content, tmp_path, backend_args=dict(backend='local'))
    metric = dict(type='CocoMetric', ann_file='coco/val.json')
    assert list(check_data(Config(dict(val_evaluator=dict(metric, backend_args=remote))))) == []
    assert 'coco/val.json does not exist' in ''.join(check_data(Config(dict(val_evaluator=metric))))


def labelled(folder: Path, name: str, *classes: str) -> ConfigDict:
    """A COCO file with one box a class, ids as in `classes`, and its data set."""
    (folder / '1.jpg').touch()
    ids = {name: i for i, name in enumerate(sorted(classes))}
    things = [dict(id=i, image_id=1, category_id=i, bbox=[1, 2, 3, 4], area=12, iscrowd=0) for i in ids.values()]
    content = dict(images=[dict(id=1, file_name='1.jpg', width=10, height=10)], annotations=things)
    content['categories'] = [dict(id=ids[name], name=name) for name in classes]
    (folder / f'{name}.json').write_text(json.dumps(content))
    metainfo = dict(classes=('car', 'van'))
    prefix = dict(img='')
    return ConfigDict(
        type='CocoDataset', data_root=str(folder), ann_file=f'{name}.json', metainfo=metainfo, data_prefix=prefix
    )


def test_files_that_number_the_same_classes_otherwise_are_refused(tmp_path: Path) -> None:
    right, turned = labelled(tmp_path, 'right', 'car', 'van'), labelled(tmp_path, 'turned', 'van', 'car')
    for dataset, labels in ((right, {0: 0, 1: 1}), (turned, {1: 0, 0: 1})):  # what MMDetection makes of them
        with DefaultScope.overwrite_default_scope('mmdet'):
            assert DATASETS.build(dataset | dict(pipeline=[])).cat2label == labels

    def problems(train: ConfigDict, val: ConfigDict) -> list[str]:
        return list(check_data(Config(dict(train_dataloader=dict(dataset=train), val_dataloader=dict(dataset=val)))))

    assert problems(right, right) == []
    assert problems(right, labelled(tmp_path, 'more', 'bus', 'car', 'van')) == [], 'classes alone are compared'
    (problem,) = problems(right, turned)
    assert f'{tmp_path}/turned.json lists its categories in another order than {tmp_path}/right.json' in problem
    assert 'van, car instead of car, van' in problem
    tested = dict(train_dataloader=dict(dataset=right), test_dataloader=dict(dataset=turned))
    assert 'test_dataloader' in ''.join(check_data(Config(tested)))
    (tmp_path / 'turned.json').rename(tmp_path / 'gone.json')
    assert list(check_data(Config(tested))) == [], 'a test set may come later'
    (tmp_path / 'gone.json').rename(tmp_path / 'turned.json')
    lists = dict(type='mmkd.KittiDataset', ann_file=['train.txt', 'val.txt'])
    assert (
        list(check_data(Config(dict(train_dataloader=dict(dataset=right), test_dataloader=dict(dataset=lists))))) == []
    )
    joined = ConfigDict(type='ConcatDataset', datasets=[right, turned])
    assert 'another order' in problems(joined, joined)[0]


def test_a_file_that_numbers_the_classes_unlike_metainfo_is_named(tmp_path: Path) -> None:
    def warnings(dataset: ConfigDict) -> list[str]:
        return list(classes_numbered_otherwise(Config(dict(train_dataloader=dict(dataset=dataset)))))

    assert warnings(labelled(tmp_path, 'right', 'car', 'van')) == []
    (warning,) = warnings(labelled(tmp_path, 'turned', 'van', 'car'))
    assert 'turned.json lists its categories as van, car, metainfo.classes says car, van' in warning


METHODS = dict(ssim='fcos', mkd='retinanet', mkd_roi='faster-rcnn', ikd_roi='faster-rcnn', mssd='yolox', frskd='fcos')


def algorithm(method: str, family: str, **loss: object) -> object:
    student = toy_detector(family, **SMALL)
    cfg = distilled_model(student, method, dict(teacher=copy.deepcopy(student), teacher_ckpt='none.pth'))
    for part in cfg['distiller']['distill_losses'].values():
        ConfigDict(part.get('loss', part)).update(loss)
    return MODELS.build(cfg)


@pytest.mark.parametrize('method', METHODS)
def test_a_right_method_takes_its_step(method: str) -> None:
    model = algorithm(method, METHODS[method])
    steps = []
    model.architecture.register_forward_hook(lambda *_: steps.append(1))
    assert step_problem(model) is None
    assert len(steps) == 2, 'the student alone, and within the method'


def test_a_student_that_wants_more_than_boxes_is_left_to_the_real_image() -> None:
    model = algorithm('ssim', 'retinanet')

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError('text')

    model.architecture.forward = fail
    assert step_problem(model) is None


def test_the_made_image_trains_every_toy_family() -> None:
    """Otherwise the check would be silent for it."""
    for family in set(METHODS.values()):
        student = MODELS.build(toy_detector(family, **SMALL))
        losses = student(*made_batch(), mode='loss')
        assert any('cls' in name for name in losses)


LAUNCHED = [
    ('none', {}, False),
    ('pytorch', dict(LOCAL_RANK='0'), False),
    ('pytorch', dict(LOCAL_RANK='1'), True),
    ('slurm', dict(SLURM_LOCALID='0', SLURM_PROCID='4'), False),
    ('slurm', dict(SLURM_LOCALID='1', SLURM_PROCID='5'), True),
    ('mpi', dict(OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_RANK='1'), True),
]


def launched(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one process, with nothing of another launcher's."""
    for name in (*process_ranks.LOCAL_RANKS, *process_ranks.RANKS):
        monkeypatch.setenv(name, '')  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(('launcher', 'variables', 'waits'), LAUNCHED)
def test_the_first_process_of_a_machine_speaks_first(
    launcher: str,
    variables: dict[str, str],
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(variables, monkeypatch)
    waited = []
    monkeypatch.setattr(command_line.time, 'sleep', waited.append)

    def fail() -> None:
        command_line.set_local_rank(0, launcher)  # the argument's own value, as the tools pass it on
        raise ValueError('a mistake')

    with pytest.raises(SystemExit):
        run_command(fail)
    assert waited == [command_line.PATIENCE] * waits
    assert 'a mistake' in capsys.readouterr().err


def test_ctrl_c_is_said_once_and_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    run: Callable = run_command
    variables = (dict(RANK='0'), dict(RANK='1'), dict(SLURM_PROCID='0'), dict(SLURM_PROCID='5'))
    for variable, says in zip(variables, (True, False, True, False), strict=True):
        launched(variable, monkeypatch)
        with pytest.raises(SystemExit) as leaving:
            run(interrupted)
        assert leaving.value.code == 130
        assert ('--resume continues' in capsys.readouterr().err) == says


@pytest.mark.parametrize(
    ('file', 'refused'), [('epoch_1.pth', True), ('best_ap_2.pth', True), ('bad_batch_3.pth', False)]
)
def test_only_a_training_asks_whose_work_dir_it_is(
    file: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, 'check_model', lambda *_, **__: ())
    (tmp_path / file).touch()
    cfg = Config(dict(model=dict(type='RetinaNet'), work_dir=str(tmp_path)))
    assert preflight.find_problems(cfg) == [], 'a check writes nothing'
    with pytest.raises(PreflightError, match='already holds a run') if refused else nullcontext():
        preflight.check_training(cfg)


def rules_say(tmp_path: Path, metric: str, *sets: str) -> tuple[list[str], list[str]]:
    """What is a problem and what a warning about a metric's file and joined validation sets."""
    parts = [dict(type='CocoDataset', data_root=f'{tmp_path}/coco', ann_file=name) for name in sets]
    dataset = parts[0] if len(parts) == 1 else dict(type='ConcatDataset', datasets=parts)
    cfg = Config(dict(val_dataloader=dict(dataset=dataset), val_evaluator=dict(type='CocoMetric', ann_file=metric)))
    return list(evaluator_of_another_set(cfg)), list(evaluator_of_several_sets(cfg))


def test_the_evaluators_file_is_known_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'coco').mkdir()
    for name, text in (('val.json', '{}'), ('copy.json', '{}'), ('other.json', '{"a": 1}')):
        (tmp_path / 'coco' / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    whole = f'{tmp_path}/coco/val.json'
    for metric, own in ((whole, 'val.json'), ('coco/val.json', whole), ('coco/copy.json', whole)):
        assert rules_say(tmp_path, metric, own) == ([], [])
    (problem,), _ = rules_say(tmp_path, 'coco/other.json', 'val.json')
    assert 'the AP would be of other images' in problem


def test_one_file_for_joined_validation_sets_is_a_warning(tmp_path: Path) -> None:
    problems, (warning,) = rules_say(tmp_path, 'merged.json', 'a.json', 'b.json')
    assert problems == [] and '2 validation sets are joined' in warning


def test_several_views_of_joined_test_sets() -> None:
    """`tools/test.py --tta`: every set gets the pipeline."""
    steps = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    sets = [dict(type='CocoDataset', pipeline=steps), dict(type='RepeatDataset', dataset=dict(pipeline=steps))]
    joined = dict(type='ConcatDataset', datasets=sets)
    cfg = Config(dict(model=dict(type='RetinaNet'), test_dataloader=dict(dataset=joined)))
    augment(cfg)
    first, second = cfg.test_dataloader.dataset.datasets
    for one in (first, second.dataset):
        assert [step.type for step in one.pipeline] == ['LoadImageFromFile', 'TestTimeAug']


def test_the_views_of_yolox_on_kitti_have_the_size_of_its_test() -> None:
    """MMDetection's YOLOX brings views of 320 to 960 px for COCO, which would shrink KITTI's wide images."""
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs/ssim/ssim_yolox_s_yolox_tiny_8xb8-100e_kitti.py')
    wanted = next(step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    augment(cfg)
    views = cfg.test_dataloader.dataset.pipeline[-1].transforms
    assert [step for steps in views for step in steps if step.type == 'Resize'] == [wanted]
    assert sum(step.type == 'RandomFlip' for steps in views for step in steps) == 2


@pytest.mark.parametrize('guided', [False, True])
def test_classes_that_a_student_reads_as_text_are_not_counted(guided: bool) -> None:
    student = dict(type='RetinaNet', bbox_head=dict(num_classes=256))
    if guided:  # as MM-Grounding-DINO: the number is one of tokens
        student['language_model'] = dict(type='BertModel')
    data = dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('car', 'cat'))))
    problems = list(preflight.check_classes(Config(dict(model=student, train_dataloader=data))))
    assert len(problems) == (0 if guided else 1)
