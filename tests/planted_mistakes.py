"""Mistakes that users make, planted in a small distillation, with what the message must name.

`TRAINING` are found by `tools/train.py` before it writes anything; `WIRING` by `tools/check_config.py`, which looks at
the built networks and runs one image.
"""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmkd.testing.toy_run import ToyRun, neck_source


class Bomb:
    """A pickle of it leaves a file behind when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


@dataclass
class Case:
    """A mistake: what is changed, and what the message must name.

    Args:
        change: changes the configuration in place; gets the toy run and a folder of its own.
        says: parts of the message.
        arguments: further arguments of the tool.
    """

    change: Callable[[Config, ToyRun, Path], None]
    says: tuple[str, ...]
    arguments: tuple[str, ...] = field(default=())


def put(key: str, value: Any) -> Callable[[Config, ToyRun, Path], None]:
    return lambda cfg, toy, folder: cfg.merge_from_dict({key: value})


def nothing(cfg: Config, toy: ToyRun, folder: Path) -> None:
    pass


def annotations(change: Callable[[dict], None]) -> Callable[[Config, ToyRun, Path], None]:
    """The training annotations, changed."""

    def write(cfg: Config, toy: ToyRun, folder: Path) -> None:
        content = json.loads((toy.data / 'annotations/train.json').read_text())
        change(content)
        (folder / 'train.json').write_text(json.dumps(content))
        cfg.train_dataloader.dataset.ann_file = str(folder / 'train.json')

    return write


def truncated(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'cut.pth').write_bytes(toy.teacher_ckpt.read_bytes()[:5000])
    cfg.model.teacher_ckpt = str(folder / 'cut.pth')


def text_as_checkpoint(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'page.pth').write_text('<html>404 not found</html>')
    cfg.model.teacher_ckpt = str(folder / 'page.pth')


def other_model(cfg: Config, toy: ToyRun, folder: Path) -> None:
    torch.save(dict(state_dict={'backbone.stem.weight': torch.zeros(3)}), folder / 'other.pth')
    cfg.model.teacher_ckpt = str(folder / 'other.pth')


def wrong_shape(cfg: Config, toy: ToyRun, folder: Path) -> None:
    state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
    state['bbox_head.retina_cls.weight'] = torch.zeros(720, 24, 3, 3)
    torch.save(dict(state_dict=state), folder / 'coco.pth')
    cfg.model.teacher_ckpt = str(folder / 'coco.pth')


def hostile(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'bomb.pth').write_bytes(pickle.dumps(dict(state_dict=Bomb(folder / 'executed')), protocol=2))
    cfg.model.teacher_ckpt = str(folder / 'bomb.pth')


def hostile_archive(cfg: Config, toy: ToyRun, folder: Path) -> None:
    torch.save(dict(state_dict=Bomb(folder / 'executed')), folder / 'archive.pth')
    cfg.model.teacher_ckpt = str(folder / 'archive.pth')


def hostile_metafile(cfg: Config, toy: ToyRun, folder: Path) -> None:
    """A metafile beside the teacher's configuration that would run a command if it were more than plain YAML."""
    (folder / 'teacher.py').write_text(toy.teacher.read_text())
    (folder / 'metafile.yml').write_text(f"Models: !!python/object/apply:os.system ['touch {folder}/executed']")
    cfg.model.teacher, cfg.model.teacher_ckpt = str(folder / 'teacher.py'), None


def of_mmrazor(cfg: Config, toy: ToyRun, folder: Path) -> None:
    state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
    torch.save(dict(state_dict={f'architecture.{k}': v for k, v in state.items()}), folder / 'razor.pth')
    cfg.model.teacher_ckpt = str(folder / 'razor.pth')


def no_connector(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.model.distiller.connectors = {}
    cfg.model.distiller.loss_forward_mappings.loss_kd.preds_S.pop('connector')


def rename_loss(cfg: Config, toy: ToyRun, folder: Path) -> None:
    distiller = cfg.model.distiller
    distiller.distill_losses = dict(kd=distiller.distill_losses.loss_kd)
    distiller.loss_forward_mappings = dict(kd=distiller.loss_forward_mappings.loss_kd)


def top_level(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.distiller = cfg.model.distiller.copy()
    cfg.distiller.schedules = dict(loss_kd=dict(begin=1))


def no_mapping(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.model.distiller.loss_forward_mappings = {}


def soft_targets(strides: tuple[int, ...] | None = None, **more: dict) -> Callable[[Config, ToyRun, Path], None]:
    """Soft targets on the class outputs of both heads, which need the assigned labels."""

    def change(cfg: Config, toy: ToyRun, folder: Path) -> None:
        head = dict(head=dict(type='ModuleOutputs', source='bbox_head'))
        sides = {
            key: dict(from_student=own, recorder='head', data_idx=0, strides=strides)
            for key, own in (('preds_S', True), ('preds_T', False))
        }
        cfg.model.distiller = dict(
            type='mmkd.DetectionDistiller',
            student_recorders=head,
            teacher_recorders=head,
            distill_losses=dict(loss_kd=dict(type='mmkd.SoftTargetLoss', mode='sigmoid')),
            loss_forward_mappings=dict(loss_kd=dict(sides, **more)),
        )

    return change


def gate(cfg: Config, toy: ToyRun, folder: Path) -> None:
    loss = dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss', gate=True))
    cfg.model.distiller.distill_losses = dict(loss_kd=loss)


MAPPING = 'model.distiller.loss_forward_mappings.loss_kd'
HEAD = 'model.architecture.bbox_head'
LOSS = 'model.distiller.distill_losses.loss_kd'
TRAIN = 'train_dataloader.dataset'

TRAINING: dict[str, Case] = {
    'data folder missing': Case(
        put(f'{TRAIN}.data_root', '/nowhere/coco'), ('/nowhere/coco', '/nowhere does not exist', 'data_r')
    ),
    'annotation file missing': Case(put(f'{TRAIN}.ann_file', '/nowhere/train.json'), ('/nowhere/train.json does not',)),
    'evaluator annotation file missing': Case(
        put('val_evaluator.ann_file', '/nowhere/val.json'), ('val_evaluator', '/nowhere/val.json does not exist')
    ),
    'class not in annotations': Case(
        put(f'{TRAIN}.metainfo', dict(classes=('circle', 'sqare', 'triangle', 'cross'))),
        ("the class 'sqare' is not in train.json", 'nearest: square'),
    ),
    'annotations of another kind': Case(annotations(lambda c: c.pop('categories')), ('no COCO annotation file',)),
    'annotations without images': Case(annotations(lambda c: c['images'].clear()), ('lists no image',)),
    'image folder wrong': Case(put(f'{TRAIN}.data_prefix.img', '/nowhere/images'), ('does not exist', 'data_prefix')),
    'path leaves the data folder': Case(
        annotations(lambda c: c['images'][0].update(file_name='../../../etc/passwd')),
        ('outside the data folder', '../../../etc/passwd'),
    ),
    'absolute path in annotations': Case(
        annotations(lambda c: c['images'][0].update(file_name='/etc/passwd')), ('outside the data folder', '/etc/passw')
    ),
    'image name that is none': Case(
        annotations(lambda c: c['images'][0].update(file_name=5)), ('images.file_name must be text', 'images[0]')
    ),
    'files joined without renumbering': Case(
        annotations(lambda c: [image.update(id=1) for image in c['images']]),
        ('train.json: images.id must be unique; 4 images have 1 ids',),
    ),
    'optimizer of no type': Case(
        put('optim_wrapper.optimizer.type', 'Adamm'), ("no optimizer is registered as 'Adamm'", 'nearest: Adam')
    ),
    'loss of another name': Case(
        put('model.distiller.distill_losses.loss_kc.loss.loss_weight', 3),
        ('model.distiller.distill_losses.loss_kc has no "type"; nearest: loss_kd.',),
    ),
    'folder of annotations': Case(
        lambda cfg, toy, folder: put(f'{TRAIN}.ann_file', str(toy.data / 'annotations'))(cfg, toy, folder),
        ('annotations is a folder; a file is wanted',),
    ),
    'num_classes': Case(put(f'{HEAD}.num_classes', 80), ('bbox_head.num_classes is 80', '4 classes: circle, square')),
    'bomb: num_classes': Case(put(f'{HEAD}.num_classes', 10**9), ('num_classes is 1000000000', 'more than')),
    'bomb: channels': Case(put('model.architecture.neck.out_channels', 10**8), ('neck.out_channels is 100000000',)),
    'bomb: batch size': Case(
        put('train_dataloader.batch_size', 10**8), ('train_dataloader.batch_size must be', '65536, got 100000000')
    ),
    'bomb: image scale': Case(
        lambda cfg, toy, folder: cfg.train_dataloader.dataset.pipeline[2].update(scale=(10**9, 10**9)),
        ('train_dataloader.dataset.pipeline[2].scale[0] is 1000000000', 'no machine can run that'),
    ),
    'bomb: workers': Case(
        put('train_dataloader.num_workers', 10**6), ('train_dataloader.num_workers must be between 0 and 1024',)
    ),
    'bomb: anything': Case(put(f'{HEAD}.feat_levels', 10**15), ('feat_levels is 1000000000000000, more than',)),
    'epochs that are no number': Case(
        put('train_cfg.max_epochs', 'twelve'), ("train_cfg.max_epochs must be a whole number, got 'twelve'",)
    ),
    'no epochs': Case(put('train_cfg.max_epochs', 0), ('train_cfg.max_epochs must be between 1 and',)),
    'bomb: nested annotations': Case(
        lambda cfg, toy, folder: (
            (folder / 'a.json').write_text('[' * 200_000),
            put(f'{TRAIN}.ann_file', str(folder / 'a.json'))(cfg, toy, folder),
        ),
        ('no COCO annotation file',),
    ),
    'unknown detector': Case(put('model.architecture.type', 'RetinaNett'), ("'RetinaNett'", 'nearest: RetinaNet')),
    'unknown backbone': Case(put('model.architecture.backbone.type', 'ResNett'), ("registered as 'ResNett'", 'ResNet')),
    'unknown algorithm': Case(
        put('model.type', 'mmkd.TeacherStudentDistil'), ("'mmkd.TeacherStudentDistil'", 'mmkd.TeacherStudentDistill')
    ),
    'unknown loss type': Case(put(f'{LOSS}.loss.type', 'mmkd.NormalisedLpLoss'), ('nearest: mmkd.NormalizedLpLoss',)),
    'unknown connector type': Case(
        put('model.distiller.connectors.adapt.connector.type', 'mmkd.ConvConector'), ('mmkd.ConvConnector',)
    ),
    'unknown argument of a backbone': Case(
        put('model.architecture.backbone.dept', 18), ('ResNet takes no argument', "'dept'", 'nearest: depth')
    ),
    'unknown argument of a loss': Case(
        put(f'{LOSS}.loss.loss_wieght', 2.0), ("NormalizedLpLoss takes no argument 'loss_wieght'", 'loss_weight')
    ),
    'unknown argument of the algorithm': Case(
        put('model.teacher_checkpoint', 'x.pth'), ('TeacherStudentDistill takes no argument', 'teacher_ckpt')
    ),
    'teacher config missing': Case(
        put('model.teacher', '/nowhere/teacher.py'), ('/nowhere/teacher.py does not exist',)
    ),
    'teacher name wrong': Case(
        put('model.teacher', 'mmdet::retinanet/retinanet_r101_fpn_1x_coc.py'),
        ('mmdet has no config', 'nearest: retinanet/retinanet_r101_fpn_1x_coco.py'),
    ),
    'teacher package wrong': Case(put('model.teacher', 'mmdett::a/b.py'), ("'mmdett' is not installed",)),
    'teacher without weights': Case(put('model.teacher_ckpt', None), ('No weights are published', 'teacher_ckpt=')),
    'teacher checkpoint missing': Case(put('model.teacher_ckpt', '/nowhere/t.pth'), ('/nowhere/t.pth does not exist',)),
    'teacher checkpoint truncated': Case(truncated, ('cut.pth is cut off or no checkpoint',)),
    'teacher checkpoint is a web page': Case(text_as_checkpoint, ('page.pth is refused: it is damaged or wants',)),
    'teacher checkpoint of another model': Case(other_model, ('does not fit', 'missing', 'unexpected: backbone.stem')),
    'teacher checkpoint of other classes': Case(wrong_shape, ('retina_cls.weight (720', 'number of classes')),
    'teacher checkpoint executes code': Case(hostile, ('bomb.pth is refused', 'execute code', 'posix.system')),
    'teacher archive executes code': Case(hostile_archive, ('archive.pth is refused', 'execute code', 'posix.system')),
    'teacher metafile executes code': Case(hostile_metafile, ('could not determine a constructor', 'os.system')),
    'teacher checkpoint of MMRazor': Case(of_mmrazor, ('MMRazor algorithm', 'Export')),
    'inherit of nothing': Case(put('model.inherit', ['nek']), ("no part 'nek'", 'nearest: neck')),
    'layer unknown': Case(
        put('model.distiller.teacher_recorders.neck.source', 'nek'), ("teacher RetinaNet has no layer 'nek'", 'neck')
    ),
    'layer that is nearly a container': Case(
        put('model.distiller.student_recorders.neck.source', 'neck.fpn_conv'),
        ("no layer 'neck.fpn_conv'; nearest: neck.fpn_convs.4",),
    ),
    'layer and teacher file at once': Case(
        lambda cfg, toy, folder: (
            put('model.distiller.teacher_recorders.neck.source', 'nek')(cfg, toy, folder) or truncated(cfg, toy, folder)
        ),
        ("has no layer 'nek'", 'teacher_ckpt: ', 'cut.pth is cut off'),
    ),
    'labels missing': Case(soft_targets(), ('loss_kd does not fit', 'needs labels=')),
    'labels of other points': Case(
        soft_targets(labels=dict(recorder='labels'), strides=(8, 16)), ('a training step on a made image fails',)
    ),
    'gate without mask': Case(gate, ('a training step on a made image fails', 'gate=True needs mask=')),
    'layer is never called': Case(
        put('model.distiller.student_recorders.neck.source', 'neck.fpn_convs'),
        ('neck.fpn_convs', 'never run', 'name a'),
    ),
    'recorder type unknown': Case(
        put('model.distiller.student_recorders.neck.type', 'ModuleOutput'), ("'ModuleOutput'", 'ModuleOutputs')
    ),
    'channels do not match': Case(no_connector, ('loss_kd does not fit', '16, 32, 48', '24, 32, 48')),
    'no common stride': Case(
        put(f'{MAPPING}.preds_T', neck_source(False, strides=(4,))), ('asks for stride 4', '(8, 16, 32, 64, 128)')
    ),
    'loss key without loss': Case(rename_loss, ('must contain "loss"', "'kd'")),
    'loss without mapping': Case(no_mapping, ("'loss_kd' has no entry in loss_forward_mappings",)),
    'mapping of unknown loss': Case(
        put('model.distiller.loss_forward_mappings.loss_dk', dict(preds_S=neck_source(True))), ('loss_dk', 'loss_kd')
    ),
    'mapping with unknown argument': Case(
        put(f'{MAPPING}.pred_S', neck_source(True)), ("takes no argument 'pred_S'", 'nearest: preds_S')
    ),
    'mapping lacks an argument': Case(
        put('model.distiller.loss_forward_mappings', dict(loss_kd=dict(_delete_=True, preds_S=neck_source(True)))),
        ("lacks the argument 'preds_T'",),
    ),
    'mapping with unknown recorder': Case(put(f'{MAPPING}.preds_T.recorder', 'nekc'), ("no 'nekc'", 'nearest: neck')),
    'mapping with unknown connector': Case(put(f'{MAPPING}.preds_S.connector', 'adpat'), ("'adpat'", 'adapt')),
    'mapping with unknown key': Case(
        put(f'{MAPPING}.preds_S.recorder_idx', 0), ("unknown key 'recorder_idx'", 'recor')
    ),
    'connector without use': Case(
        put('model.distiller.connectors.spare', dict(type='mmkd.ConvConnector')), ("'spare' is used by no loss",)
    ),
    'schedule for unknown loss': Case(
        put('model.distiller.schedules', dict(loss_dk=dict(begin=1))), ("unknown loss 'loss_dk'", 'nearest: loss_kd')
    ),
    'schedule with unknown ramp': Case(
        put('model.distiller.schedules', dict(loss_kd=dict(end=2, ramp='linar'))), ("got 'linar'", 'linear')
    ),
    'schedule with unknown key': Case(
        put('model.distiller.schedules', dict(loss_kd=dict(start=2))), ("'start'", 'WeightSchedule')
    ),
    'top-level distiller': Case(top_level, ('top-level distiller', 'no effect', 'model.distiller')),
    'load_from missing': Case(put('load_from', '/nowhere/s.pth'), ('load_from', '/nowhere/s.pth does not exist')),
    'resume from a missing file': Case(nothing, ('/nowhere/s.pth does not exist',), ('--resume', '/nowhere/s.pth')),
    'option that nobody reads': Case(
        nothing, ("nothing reads 'optim_wraper'", 'optim_wrapper'), ('--cfg-options', 'optim_wraper.optimizer.lr=1')
    ),
    'auto-scale without base': Case(nothing, ('auto_scale_lr.base_batch_size',), ('--auto-scale-lr',)),
    'no model': Case(lambda cfg, toy, folder: cfg.pop('model'), ('defines no model', 'base to inherit')),
}
