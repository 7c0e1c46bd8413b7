"""Training configs of the small experiments: one recipe for every arm, so that only the method differs.

From scratch, on small images: AdamW, a linear warm-up, then a cosine to zero, batch 4, gradients clipped. The last
epoch is scored, not the best one: choosing an epoch by the validation score would favour the noisier arm.
"""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmkd.engine.launch import load_config
from mmkd.engine.student_config import is_distillation
from mmkd.testing.detection_data import DetectionData
from mmkd.testing.toy_detectors import SIZES


@dataclass(frozen=True)
class Schedule:
    """How long and how an arm is trained.

    Args:
        epochs: Passes over the training images.
        scale: (width, height) that images are resized into, px, keeping their ratio.
        batch: Images of one step.
        lr: Peak learning rate of AdamW. The default suits the small detectors of this package, batches of 4 and
            training from scratch (docs/results.md); larger ones need less.
        weight_decay: Of AdamW; not on norms and biases.
        warmup: Steps of the linear warm-up.
        workers: Processes that load images; 0 loads in the training process.
        score_every: Epochs between two scorings; the last epoch is always scored.
    """

    epochs: int = 12
    scale: tuple[int, int] = (320, 240)
    batch: int = 4
    lr: float = 8e-3
    weight_decay: float = 0.05
    warmup: int = 60
    workers: int = 0
    score_every: int = 1


def training_config(model: dict, data: DetectionData, schedule: Schedule, seed: int) -> Config:
    """The whole MMEngine config of one run; `Runner.from_cfg` takes it as it is.

    Args:
        model: Config of a detector or of an algorithm of `mmkd`.
        data: Data set.
        schedule: Training schedule.
        seed: Of the initial weights, the order of images and their augmentation.

    Returns:
        Config that can be written to a file and read again.
    """
    steps = -(-data.counts[0] // schedule.batch)
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            **_loaders(data, schedule),
            **_optimisation(schedule, steps),
            default_hooks=dict(
                timer=dict(type='IterTimerHook'),
                logger=dict(type='LoggerHook', interval=max(1, min(10, steps // 3))),
                param_scheduler=dict(type='ParamSchedulerHook'),
                checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),  # to go on after an interruption
                sampler_seed=dict(type='DistSamplerSeedHook'),
            ),
            env_cfg=dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
            visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            log_processor=dict(type='LogProcessor', window_size=10, by_epoch=True),
            log_level='INFO',
            load_from=None,
            resume=False,
            randomness=dict(seed=seed),
        )
    )


def _loaders(data: DetectionData, schedule: Schedule) -> dict:
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    resize = dict(type='Resize', scale=tuple(schedule.scale), keep_ratio=True)
    pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
    train_pack = dict(type='PackDetInputs')
    train = [*load, resize, dict(type='RandomFlip', prob=0.5), train_pack]
    test = [load[0], resize, load[1], pack]
    common = dict(num_workers=schedule.workers, persistent_workers=False)
    train_loader = dict(
        common,
        batch_size=schedule.batch,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(data.train, pipeline=train),
    )
    val_loader = dict(
        common,
        batch_size=1,
        drop_last=False,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(data.val, pipeline=test),
    )
    return dict(
        train_dataloader=train_loader,
        val_dataloader=val_loader,
        test_dataloader=val_loader,
        val_evaluator=data.evaluator,
        test_evaluator=data.evaluator,
    )


def _optimisation(schedule: Schedule, steps: int) -> dict:
    total = schedule.epochs * steps
    warmup = min(schedule.warmup, max(total // 5, 1))
    return dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=schedule.epochs, val_interval=schedule.score_every),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=schedule.lr, weight_decay=schedule.weight_decay),
            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
            clip_grad=dict(max_norm=10, norm_type=2),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=warmup),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=max(total, warmup + 1), eta_min=0.0),
        ],
    )


def chosen_detector(choice: str, num_classes: int) -> dict:
    """Model that `--student` or `--teacher` names.

    Args:
        choice: Name of a small detector, or what `detector_from_config` takes.
        num_classes: Of the data set.

    Returns:
        Model config.

    Raises:
        ValueError: For a name that is neither.
    """
    if choice in SIZES:
        return SIZES[choice](num_classes).to_dict()
    if Path(choice).suffix != '.py':
        raise ValueError(f'a detector is a config (.py) or one of {", ".join(SIZES)}, got {choice!r}')
    return detector_from_config(choice, num_classes)


def detector_from_config(config: str | Path, num_classes: int) -> dict:
    """Model of somebody's own config, for another data set.

    Args:
        config: Path, or a name such as `mmdet::retinanet/retinanet_r18_fpn_1x_coco.py`.
        num_classes: Of the data set; every `num_classes` in the model becomes this.

    Returns:
        Model config.

    Raises:
        FileNotFoundError: No such config; the nearest ones are named.
        ValueError: Where the config has no model, is a distillation, or its model has no `num_classes`.
    """
    cfg = load_config(str(config))
    if is_distillation(cfg):
        raise ValueError(
            f'{config} is a distillation ({cfg.model.get("type")}): --student and --teacher take the config of a '
            'detector alone, such as the student.py that a distillation writes into its work directory'
        )
    model = cfg.model.to_dict()
    if not _set_everywhere(model, 'num_classes', num_classes):
        raise ValueError(f'the model of {config} has no num_classes to set to {num_classes}')
    return model


def _set_everywhere(node: object, key: str, value: int) -> int:
    """Set `key` wherever it occurs in nested dicts and lists; how often it did."""
    if isinstance(node, dict):
        here = int(key in node)
        if here:
            node[key] = value
        return here + sum(_set_everywhere(child, key, value) for child in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_set_everywhere(child, key, value) for child in node)
    return 0
