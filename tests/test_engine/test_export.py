"""What a user takes away from a run: a plain checkpoint and configuration, from whatever the run left behind."""

import copy
import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from mmkd.compat import UnsafeCheckpointError, load_checkpoint_file
from mmkd.engine.config_as_data import UnsafeConfigError, check_types, parse_config
from mmkd.engine.export import ExportOptions, check_outputs, export_student, half_state, pipeline_shape
from mmkd.engine.export_source import find_checkpoint, find_config, read_source, student_state
from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.engine.mmdet_config import is_foreign, mmdet_config, one_metainfo
from mmkd.models.algorithms.checkpoint_state import CheckpointMismatchError
from mmkd.testing.toy_run import ToyRun, make_toy_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'), epochs=2)


@pytest.fixture(scope='module')
def run(toy: ToyRun) -> Path:
    """Work directory of a finished distillation with EMA: epoch_1.pth and epoch_2.pth."""
    cfg = toy.load(model__architecture__test_cfg__score_thr=0.0, log_level='WARNING')
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.3, update_buffers=True)]
    cfg.train_cfg.val_interval = 5
    prepare_training(cfg, config_name='toy', work_dir=str(toy.root / 'run'))
    train(cfg)
    return toy.root / 'run'


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    folder = tmp_path / 'run'
    shutil.copytree(run, folder)
    return folder


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def export(source: Path | str, folder: Path, **options) -> dict:
    export_student(str(source), ExportOptions(folder / 'student.pth', **options))
    return load_checkpoint_file(str(folder / 'student.pth'))


# ---- the exported pair ----------------------------------------------------------------------------------------------


def test_the_checkpoint_holds_the_students_weights_and_nothing_else(run: Path, tmp_path: Path) -> None:
    exported = export(run, tmp_path)
    assert set(exported) == {'meta', 'state_dict'}
    assert equal(exported['state_dict'], dict(load_checkpoint_file(str(run / 'epoch_2.pth'))['state_dict']))
    assert exported['meta']['dataset_meta']['classes'] == ('circle', 'square', 'triangle', 'cross')
    assert str(run) not in repr(exported['meta']['exported'])
    assert exported['meta']['cfg'] == (tmp_path / 'student.py').read_text()


def test_averaged_weights_are_the_default_and_raw_ones_an_option(run: Path, tmp_path: Path) -> None:
    saved = load_checkpoint_file(str(run / 'epoch_2.pth'))
    raw = {name.removeprefix('module.'): value for name, value in saved['ema_state_dict'].items() if name != 'steps'}
    assert not equal(raw, dict(saved['state_dict']))
    assert equal(export(run, tmp_path, raw=True)['state_dict'], raw)


def test_raw_weights_of_a_run_without_ema_are_refused(toy: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='has no averaged weights'):
        read_source(str(toy.teacher_ckpt), raw=True)


def test_half_is_half_the_file_and_nearly_the_same_network(run: Path, tmp_path: Path) -> None:
    whole = export(run, tmp_path / 'whole')['state_dict']
    exported = export(run, tmp_path / 'half', half=True)
    sizes = [(tmp_path / name / 'student.pth').stat().st_size for name in ('half', 'whole')]
    assert sizes[0] < 0.65 * sizes[1]
    weight = 'backbone.conv1.weight'
    assert exported['state_dict'][weight].dtype == torch.float16
    assert torch.equal(exported['state_dict'][weight], whole[weight].half())
    assert exported['state_dict']['backbone.bn1.running_var'].dtype == torch.float32


def test_half_keeps_what_float16_cannot_hold() -> None:
    state = dict(large=torch.tensor([1e6]), count=torch.tensor(3), small=torch.tensor([0.1]))
    halved, note = half_state(state)
    assert [value.dtype for value in halved.values()] == [torch.float32, torch.int64, torch.float16]
    assert note.startswith('float16: 1 of 3 tensors')


def detections(checkpoint: Path, image: Path) -> dict:
    model = init_detector(str(checkpoint.with_suffix('.py')), str(checkpoint), device='cpu')
    found = inference_detector(model, str(image)).pred_instances
    return {name: found[name] for name in ('bboxes', 'scores', 'labels')}


@pytest.fixture(scope='module')
def kitti_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Student of a shipped KITTI distillation with made weights, as a run would save it."""
    cfg = load_config(str(ROOT / 'configs/ssim/ssim_retinanet_r50_retinanet_r18_fpn_1x_kitti.py'))
    state = MODELS.build(dict(cfg.model.architecture, _scope_='mmdet')).state_dict()
    path = tmp_path_factory.mktemp('kitti') / 'epoch_1.pth'
    torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=state), path)
    return path


@pytest.mark.slow
def test_the_pair_detects_the_same_where_mmkd_cannot_be_imported(
    run: Path, kitti_checkpoint: Path, toy: ToyRun, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ('plain.pth', 'half.pth', 'kitti.pth')]
    export_student(str(run), ExportOptions(files[0]))
    export_student(str(run), ExportOptions(files[1], half=True))
    export_student(str(kitti_checkpoint), ExportOptions(files[2], shape=(64, 96)))
    image = next((toy.data / 'images').glob('*'))
    script = Path(__file__).with_name('without_mmkd.py')
    command = [sys.executable, str(script), str(image), *map(str, files)]
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split('FOUND')[1])
    assert found['imported'] is None
    shutil.copy(run / 'epoch_2.pth', tmp_path / 'source.pth')
    shutil.copy(run / 'student.py', tmp_path / 'source.py')
    source = detections(tmp_path / 'source.pth', image)
    plain, half = found[str(files[0])], found[str(files[1])]
    assert len(plain['scores']) > 50
    assert plain['classes'] == ['circle', 'square', 'triangle', 'cross']
    torch.testing.assert_close(torch.tensor(plain['scores']), source['scores'], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(plain['bboxes']), source['bboxes'], rtol=1e-4, atol=1e-3)
    assert plain['labels'] == source['labels'].tolist()
    torch.testing.assert_close(torch.tensor(half['scores'])[:20], source['scores'][:20], rtol=0.05, atol=0.01)
    assert found[str(files[2])]['classes'] == ['Car', 'Pedestrian', 'Cyclist']


# ---- the configuration ----------------------------------------------------------------------------------------------

CONFIGS = [
    'configs/baselines/yolov3_d53_8xb8-100e_kitti.py',
    'configs/mssd/mssd-scales_yolox_s_8xb8-100e_kitti.py',
    'configs/ikd/ikd_faster-rcnn_r50_faster-rcnn_r18_fpn_1x_kitti.py',
    'configs/mssd/mssd_retinanet_r50_fpn_1x_coco.py',
    'configs/mkd/mkd-assistant_retinanet_r50_retinanet_r18_fpn_1x_coco.py',
    'configs/frskd/frskd_resnet-18_b128-200e_cifar100.py',
]


@pytest.mark.parametrize('name', CONFIGS)
def test_exported_configuration_names_nothing_of_mmkd(name: str) -> None:
    cfg = load_config(str(ROOT / name))
    plain, notes = mmdet_config(cfg)
    assert is_foreign(cfg._cfg_dict.to_dict())
    assert not is_foreign(plain._cfg_dict.to_dict())
    assert 'architecture' not in plain.model and 'teacher' not in plain
    assert plain.test_dataloader.dataset.get('pipeline')
    if name.endswith('kitti.py'):
        assert any('mmkd.KittiMetric' in note for note in notes)
        dataset = DATASETS.build(dict(plain.test_dataloader.dataset, lazy_init=True))
        assert dataset.metainfo['classes'] == ('Car', 'Pedestrian', 'Cyclist')
        assert 'test_evaluator' not in plain and 'train_dataloader' not in plain


def test_a_coco_student_can_still_be_trained_and_tested_by_mmdetection() -> None:
    cfg = load_config('mmkd::ssim/ssim_retinanet_r101_retinanet_r18_fpn_1x_coco.py')
    plain, notes = mmdet_config(cfg)
    assert notes == []
    kept = ('train_dataloader', 'optim_wrapper', 'train_cfg', 'val_evaluator', 'test_evaluator', 'test_cfg')
    assert all(plain[key] == cfg[key] for key in kept)
    assert plain.model.backbone.init_cfg is None
    assert pipeline_shape(plain, 32) == (800, 1344)


def test_a_student_made_of_mmkds_parts_is_refused(toy: ToyRun) -> None:
    cfg = toy.load()
    cfg.model.architecture.bbox_head.loss_cls = dict(type='mmkd.SSIMLoss', data_range=1.0)
    with pytest.raises(ValueError, match='The student itself has parts of mmkd'):
        mmdet_config(cfg)


def test_a_users_own_import_is_kept_and_said(toy: ToyRun) -> None:
    cfg = toy.load()
    cfg.custom_imports = dict(imports=['mmkd.compat', 'my_backbones'])
    plain, notes = mmdet_config(cfg)
    assert plain.custom_imports.imports == ['my_backbones']
    assert notes == ['using it needs your own my_backbones']


def test_without_a_test_pipeline_there_is_nothing_to_infer_by(toy: ToyRun) -> None:
    cfg = toy.load()
    cfg.test_dataloader = cfg.val_dataloader = None
    with pytest.raises(ValueError, match='neither test_dataloader nor val_dataloader'):
        mmdet_config(cfg)


# ---- interrupted runs -----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7000])


def test_a_cut_off_last_checkpoint_is_passed_over(copied: Path, tmp_path: Path) -> None:
    cut(copied / 'epoch_2.pth')
    (copied / '.epoch_3.pth.part').write_bytes(b'half')
    exported = export(copied, tmp_path)
    assert equal(exported['state_dict'], dict(load_checkpoint_file(str(copied / 'epoch_1.pth'))['state_dict']))
    assert exported['meta']['exported']['source'] == 'epoch_1.pth'


def test_a_pointer_to_nothing_is_passed_over(copied: Path) -> None:
    (copied / 'last_checkpoint').write_text('/gone/epoch_9.pth')
    assert find_checkpoint(str(copied)).name == 'epoch_2.pth'


def test_a_folder_without_a_whole_checkpoint_is_refused(copied: Path, tmp_path: Path) -> None:
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        cut(copied / name)
    with pytest.raises(RuntimeError, match='No checkpoint in .* is whole'):
        export(copied, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_folder_with_other_files_names_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no .pth file'):
        find_checkpoint(str(tmp_path))
    (tmp_path / 'best_coco_bbox_mAP_epoch_3.pth').touch()
    with pytest.raises(FileNotFoundError, match='best_coco_bbox_mAP_epoch_3.pth'):
        find_checkpoint(str(tmp_path))


def test_a_checkpoint_without_its_configuration_takes_the_one_beside_it(copied: Path, tmp_path: Path) -> None:
    saved = load_checkpoint_file(str(copied / 'epoch_2.pth'))
    torch.save(dict(state_dict=saved['state_dict']), copied / 'bare.pth')
    exported = export(copied / 'bare.pth', tmp_path)
    assert exported['meta']['dataset_meta']['classes'] == ('circle', 'square', 'triangle', 'cross')
    (copied / 'student.py').unlink()
    with pytest.raises(ValueError, match='holds no configuration. Give .* --config'):
        read_source(str(copied / 'bare.pth'))


# ---- MMRazor --------------------------------------------------------------------------------------------------------


def mmrazor_checkpoint(toy: ToyRun, path: Path, **change: object) -> dict:
    """What MMRazor's own algorithm saves: student, teacher and connectors in one state."""
    cfg = toy.load()
    student, teacher = cfg.model.architecture, Config.fromfile(str(toy.teacher)).model
    neck = dict(fpn=dict(type='ModuleOutputs', source='neck.fpn_convs.0.conv'))
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=neck,
        teacher_recorders=neck,
        connectors=dict(adapt=dict(type='ConvModuleConnector', in_channel=16, out_channel=24)),
        distill_losses=dict(loss_l2=dict(type='L2Loss')),
        loss_forward_mappings=dict(
            loss_l2=dict(
                s_feature=dict(from_student=True, recorder='fpn', connector='adapt'),
                t_feature=dict(from_student=False, recorder='fpn'),
            )
        ),
    )
    student, teacher = (dict(model, _scope_='mmdet') for model in (student, teacher))
    cfg.model = dict(
        _scope_='mmrazor',
        type='SingleTeacherDistill',
        architecture=student,
        teacher=teacher,
        teacher_trainable=False,
        distiller=distiller,
    )
    state = MODELS.build(copy.deepcopy(cfg.model)).state_dict()
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=('a', 'b', 'c', 'd')))
    torch.save(dict(meta=meta, state_dict=state, optimizer=dict(state={}), **change), path)
    return state


def test_mmrazors_checkpoint_becomes_a_plain_student(toy: ToyRun, tmp_path: Path) -> None:
    state = mmrazor_checkpoint(toy, tmp_path / 'razor.pth')
    assert {name.split('.')[0] for name in state} == {'architecture', 'teacher', 'distiller'}
    report = export_student(str(tmp_path / 'razor.pth'), ExportOptions(tmp_path / 's.pth'))
    exported = load_checkpoint_file(str(tmp_path / 's.pth'))
    student = {k.removeprefix('architecture.'): v for k, v in state.items() if k.startswith('architecture.')}
    assert equal(exported['state_dict'], student)
    assert exported['meta']['dataset_meta']['classes'] == ('a', 'b', 'c', 'd')
    assert 'mmrazor' not in exported['meta']['cfg']
    assert any('left out' in note and 'teacher (' in note and 'distiller (' in note for note in report.notes)
    cells = {row[0]: row[1:] for row in report.rows()}
    assert float(cells['parameters of the detector, M'][2]) > float(cells['parameters of the detector, M'][1])


def test_mmrazors_way_to_name_a_student_is_understood() -> None:
    student = dict(cfg_path='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', pretrained=False)
    model = dict(_scope_='mmrazor', type='SingleTeacherDistill', architecture=student, teacher=student)
    cfg = Config(dict(model=model, test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=[]))))
    plain, _ = mmdet_config(cfg)
    assert (plain.model.type, plain.model.backbone.depth, plain.default_scope) == ('RetinaNet', 18, 'mmdet')


@pytest.mark.parametrize('name', ['my/student.py', 'mmdet::../../../my/student.py'])
def test_a_named_student_is_read_from_installed_packages_only(name: str) -> None:
    with pytest.raises(ValueError, match='cfg_path must be pkg::config'):
        mmdet_config(Config(dict(model=dict(architecture=dict(cfg_path=name)))))


def test_a_teacher_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='holds a teacher or a distiller, and no student'):
        student_state(dict(state_dict={'teacher.conv.weight': torch.zeros(1)}), tmp_path / 'x.pth')


# ---- files that are more than data ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('import os\nos.system("touch {0}")', 'line 1 is no assignment'),
        ('model = __import__("os").system("touch {0}")', 'malformed node'),
        ('model = dict(**{{"type": "X"}})', 'calls dict with more'),
        ('model = ' + '[' * 5000, 'not plain data'),
        ('x = ' + '-' * 100_000 + '1', 'not plain data'),
    ],
)
def test_a_configuration_that_is_code_is_not_run(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeConfigError, match=says):
        parse_config(text.format(tmp_path / 'executed'), 'x.pth')
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('kind', ['mmengine.call_command', 'mmengine.utils.package_utils.call_command', 'antigravity'])
def test_a_type_that_no_registry_holds_is_refused(kind: str, toy: ToyRun) -> None:
    cfg = toy.load()
    check_types(cfg, 'x.pth')
    cfg.model.architecture.neck = dict(type=kind)
    with pytest.raises(UnsafeConfigError, match=f"model.architecture.neck.type is '{kind}'"):
        check_types(cfg, 'x.pth')


def test_a_type_that_is_a_command_is_not_run(run: Path, tmp_path: Path) -> None:
    """MMEngine's registries take any dotted name for a callable, and would call it."""
    saved = load_checkpoint_file(str(run / 'epoch_2.pth'))
    cfg = find_config(saved, run / 'epoch_2.pth')
    cfg.model.neck = dict(type='subprocess.Popen', args=['touch', str(tmp_path / 'executed')])
    saved['meta']['cfg'] = cfg.pretty_text
    torch.save(saved, tmp_path / 'evil.pth')
    with pytest.raises(UnsafeConfigError, match="model.neck.type is 'subprocess.Popen'"):
        export(tmp_path / 'evil.pth', tmp_path / 'out')
    assert not (tmp_path / 'executed').exists()
    MODELS.build(cfg.model.neck).wait()
    assert (tmp_path / 'executed').exists(), 'the planted configuration must be one that would execute'


def test_a_module_to_import_is_refused(toy: ToyRun) -> None:
    cfg = Config(dict(custom_imports=dict(imports=['my_code'])))
    with pytest.raises(UnsafeConfigError, match='wants to import my_code.*--config'):
        check_types(cfg, 'x.pth')


def test_names_as_pure_python_configurations_dump_them_are_accepted() -> None:
    model = dict(type='mmdet.models.detectors.retinanet.RetinaNet', backbone=dict(type='mmdet.ResNet'))
    optimizer = dict(type='torch.optim.SGD')  # nothing that is built here, and still no command
    check_types(Config(dict(model=model)), 'x.pth')
    with pytest.raises(UnsafeConfigError, match='torch.optim.SGD'):
        check_types(Config(dict(model=model, optim_wrapper=dict(optimizer=optimizer))), 'x.pth')


def test_a_pickle_that_is_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.system, (f'touch {tmp_path}/executed',)

    (tmp_path / 'bomb.pth').write_bytes(pickle.dumps(dict(state_dict=Bomb()), protocol=2))
    with pytest.raises(UnsafeCheckpointError, match='wants to execute code'):
        export(tmp_path / 'bomb.pth', tmp_path / 'out')
    assert not (tmp_path / 'executed').exists()


# ---- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'error', 'says'),
    [
        (dict(out='s.onnx'), ValueError, '--out must end in .pth'),
        (dict(out='s.pth', onnx='s.pb'), ValueError, '--onnx must end in .onnx'),
        (dict(out='folder'), ValueError, 'is a folder'),
        (dict(out='file/s.pth'), ValueError, 'is a file, not a folder'),
        (dict(out='there.pth'), FileExistsError, 'there.pth exists already.*--force'),
        (dict(out='config.pth'), FileExistsError, 'config.py exists already'),
        (dict(out='s.pth', onnx='there.onnx'), FileExistsError, 'there.onnx exists already'),
    ],
)
def test_wrong_names_are_refused(options: dict, error: type, says: str, tmp_path: Path) -> None:
    (tmp_path / 'folder').mkdir()
    for name in ('file', 'there.pth', 'config.py', 'there.onnx'):
        (tmp_path / name).write_text('kept')
    with pytest.raises(error, match=says):
        check_outputs(ExportOptions(**{key: tmp_path / value for key, value in options.items()}))
    assert (tmp_path / 'there.pth').read_text() == 'kept'


def test_force_replaces_and_the_source_is_never_replaced(copied: Path, tmp_path: Path) -> None:
    for name in ('student.pth', 'student.py'):
        (tmp_path / name).write_text('old')
    assert export(copied, tmp_path, force=True)['state_dict']
    before = (copied / 'epoch_2.pth').read_bytes()
    with pytest.raises(ValueError, match='is the source itself'):
        export_student(str(copied), ExportOptions(copied / 'epoch_2.pth', force=True))
    assert (copied / 'epoch_2.pth').read_bytes() == before


@pytest.mark.parametrize(
    ('change', 'options', 'error', 'says'),
    [
        (lambda saved: saved.pop('state_dict'), {}, ValueError, 'is no checkpoint'),
        (
            lambda saved: saved['state_dict'].pop('neck.lateral_convs.0.conv.weight'),
            {},
            CheckpointMismatchError,
            '1 mis',
        ),
        (lambda saved: None, dict(shape=(100, 96)), ValueError, '--shape 100 96.*divisible by 32.*128 96'),
        (lambda saved: None, dict(shape=(0, 96)), ValueError, 'positive'),
        (lambda saved: None, dict(config='mmdet::nothing.py'), FileNotFoundError, 'nearest'),
    ],
)
def test_a_failing_export_writes_nothing(
    change: Callable, options: dict, error: type, says: str, run: Path, tmp_path: Path
) -> None:
    saved = load_checkpoint_file(str(run / 'epoch_2.pth'))
    change(saved)
    torch.save(saved, tmp_path / 'x.pth')
    with pytest.raises(error, match=says):
        export(tmp_path / 'x.pth', tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_another_networks_configuration_is_refused(run: Path, toy: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatchError, match='does not fit the student RetinaNet'):
        export(run, tmp_path / 'out', config=str(toy.teacher))


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_program_on_the_page_detects_what_mmdetection_detects(
    run: Path, toy: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
    program = page.split('# file: my/run_onnx.py\n')[1].split('```')[0]
    (tmp_path / 'run_onnx.py').write_text(program)
    files = [tmp_path / 'student.onnx', tmp_path / 'student.pth', next((toy.data / 'images').glob('*'))]
    export_student(str(run), ExportOptions(files[1], onnx=files[0]))
    monkeypatch.setattr(sys, 'argv', ['run_onnx.py', *map(str, files)])
    capsys.readouterr()
    runpy.run_path(str(tmp_path / 'run_onnx.py'), run_name='__main__')
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ' [' in line]
    expected = detections(files[1], files[2])
    assert len(lines) == len(expected['scores']) > 50
    scores = torch.tensor([float(line[1]) for line in lines])
    torch.testing.assert_close(scores, expected['scores'], rtol=0, atol=2e-3)


def test_joined_sets_of_one_classes_are_described_once(toy: ToyRun, tmp_path: Path) -> None:
    """MMEngine writes a list of sets of different folders or colours, which `init_detector` dies of."""
    sets = [dict(classes=('a', 'b', 'c', 'd'), palette=[(n, 0, 0)] * 4, label_dir=str(n)) for n in range(2)]
    assert one_metainfo(sets) == sets[0] and one_metainfo(sets[1]) == sets[1] and one_metainfo(None) == {}
    assert one_metainfo([sets[0], dict(sets[1], classes=('a',))]) == {}
    mmrazor_checkpoint(toy, tmp_path / 'razor.pth')
    content = load_checkpoint_file(str(tmp_path / 'razor.pth'))
    content['meta']['dataset_meta'] = sets
    torch.save(content, tmp_path / 'joined.pth')
    export_student(str(tmp_path / 'joined.pth'), ExportOptions(tmp_path / 's.pth'))
    exported = load_checkpoint_file(str(tmp_path / 's.pth'))['meta']['dataset_meta']
    assert exported == {key: sets[0][key] for key in ('classes', 'palette')}
