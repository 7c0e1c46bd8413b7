"""What `tools/visualize_distillation.py` does after parsing its arguments."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from mmkd import compat
from mmkd.engine.command_line import check_output
from mmkd.engine.distillation_pictures import KINDS, PictureOptions, draw_subject
from mmkd.engine.preflight_data import dataset_classes
from mmkd.engine.student_config import is_distillation
from mmkd.engine.subjects import CocoTruth, Subject, image_pipeline, load_subject, refuse_same_names, subjects_of
from mmkd.models.algorithms.checkpoint_state import CheckpointMismatchError, load_strictly
from mmkd.models.apart import load_apart
from mmkd.visualization.style import save_figure

CHECKPOINT_ENDINGS = ('.pth', '.pt', '.ckpt')


@dataclass(frozen=True)
class VisualizeOptions:
    """What is looked at, and where the pictures go.

    Args:
        out: folder of the pictures.
        checkpoint: of the distilled student; None for the student as it is before training.
        plain: checkpoint of a plain student, for the detections.
        images: paths.
        indices: of images of the configuration's own validation set, from 0.
        annotations: COCO file with objects of `images`.
        kinds: some of `distillation_pictures.KINDS`.
        levels: names of levels; None for all.
        threshold: lowest score of a detection.
        dpi: dots an inch.
        device: torch's name.
        force: write over pictures of an earlier call.
    """

    out: Path
    checkpoint: str | None = None
    plain: str | None = None
    images: Sequence[str] = ()
    indices: Sequence[int] = ()
    annotations: str | None = None
    kinds: Sequence[str] = KINDS
    levels: Sequence[str] | None = None
    threshold: float = 0.3
    dpi: int = 110
    device: str = field(default_factory=lambda: 'cuda' if torch.cuda.is_available() else 'cpu')
    force: bool = False


def split_files(files: Sequence[str], *, named_images: bool) -> tuple[str | None, list[str]]:
    """Tell `[CHECKPOINT] IMAGE...` apart, by the ending of the first.

    Args:
        files: what stands behind the configuration on the command line.
        named_images: images are named by other means too.

    Raises:
        ValueError: there is no image.
    """
    checkpoint = files[0] if files and files[0].endswith(CHECKPOINT_ENDINGS) else None
    images = list(files[1:] if checkpoint else files)
    if not images and not named_images:
        raise ValueError('Name at least one image: a path behind the configuration, or --val with an index.')
    return checkpoint, images


def visualize(cfg: Config, options: VisualizeOptions) -> tuple[list[Path], list[str]]:
    """Draw all pictures.

    Args:
        cfg: configuration of the distillation.
        options: what is looked at.

    Returns:
        The files, and remarks on what they do not show.

    Raises:
        FileExistsError: a picture is there already.
        FileNotFoundError: an image, a checkpoint or an annotation file does not exist.
        PermissionError: the folder of the pictures cannot be written to.
        ValueError: the configuration distils nothing, or an option names what is not there.
    """
    _check_options(options)
    if not is_distillation(cfg) or 'distiller' not in cfg.model:
        raise ValueError('This configuration distils nothing; give that of a distillation.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        classes = _classes(cfg)
        picture = PictureOptions(options.kinds, options.levels, options.threshold, classes)
        subjects = _subjects(cfg, options, classes)
        _check_names(cfg, subjects, options)
        model, remarks = load_distillation(cfg, options.checkpoint, options.device)
        others = {} if options.plain is None else {'plain': _load_plain(cfg, options.plain, options.device)}
        return _draw(model, subjects, picture, others, options), remarks


def _check_options(options: VisualizeOptions) -> None:
    """Refuse what cannot be drawn or written, before anything is loaded."""
    check_output('--out', options.out, folder=True)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'--device {options.device} cannot be used (such as cpu, cuda, cuda:1 can): {reason}'
        ) from error
    if options.levels and set(options.kinds) == {'detections'}:
        raise ValueError('--levels chooses levels of the losses and of the attention, and --kinds asks for neither.')


def _draw(
    model: nn.Module,
    subjects: Sequence[Subject],
    picture: PictureOptions,
    others: Mapping[str, nn.Module],
    options: VisualizeOptions,
) -> list[Path]:
    files = []
    for subject in subjects:
        figures = draw_subject(model, subject, picture, others)
        if options.levels and not figures.keys() - {'detections'}:
            kinds, levels = ' and '.join(options.kinds), ', '.join(options.levels)
            raise ValueError(f'--levels {levels}: nothing that --kinds asks for ({kinds}) has them.')
        for name, figure in figures.items():
            files.append(save_figure(figure, options.out / f'{subject.name}_{name}.png', options.dpi))
    return files


def _classes(cfg: Config) -> tuple[str, ...]:
    for name in ('val_dataloader', 'test_dataloader', 'train_dataloader'):
        dataset: Any = (cfg.get(name) or {}).get('dataset')
        while dataset is not None and ('dataset' in dataset or 'datasets' in dataset):
            dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
        if dataset is not None:
            return dataset_classes(dataset)
    return ()


def _subjects(cfg: Config, options: VisualizeOptions, classes: Sequence[str]) -> list[Subject]:
    pipeline = Compose(image_pipeline(cfg))
    truth = None if options.annotations is None else CocoTruth(options.annotations, classes)
    found = [load_subject(pipeline, path, truth.of(path) if truth else None) for path in options.images]
    if options.indices:
        if not cfg.get('val_dataloader'):
            raise ValueError('--val takes images of the validation set, and the configuration has none.')
        found += subjects_of(DATASETS.build(cfg.val_dataloader.dataset), options.indices, pipeline)
    return found


def _check_names(cfg: Config, subjects: Sequence[Subject], options: VisualizeOptions) -> None:
    """Refuse to write over pictures, before anything is loaded."""
    refuse_same_names(subjects)
    kinds = [*cfg.model.distiller.get('distill_losses', {}), *KINDS]
    files = [options.out / f'{subject.name}_{kind}.png' for subject in subjects for kind in kinds]
    there = [file for file in files if file.exists()]
    if there and not options.force:
        raise FileExistsError(f'{there[0]} is there already; choose another --out, or --force to write over it.')


def load_distillation(cfg: Config, checkpoint: str | None, device: str) -> tuple[nn.Module, list[str]]:
    """Build an algorithm with its teacher, and load a distilled student together with its connectors.

    Args:
        cfg: configuration of the distillation.
        checkpoint: of the student; with what `mmkd` saved beside it, the connectors are those of its training.
        device: torch's name.

    Returns:
        The algorithm, and remarks on parts that are not trained.

    Raises:
        FileNotFoundError: no such file.
        mmkd.models.algorithms.checkpoint_state.CheckpointMismatchError: it is of another network or method.
    """
    model = MODELS.build(copy.deepcopy(cfg.model))
    remarks = []
    if checkpoint is None:
        model.init_weights()
        remarks.append('No checkpoint is given: this is the student before training.')
    else:
        saved = _read(checkpoint)
        load_strictly(model.architecture, saved, name=f'{type(model.architecture).__name__} from {checkpoint}')
        remarks += _load_apart(model, saved, checkpoint)
    if hasattr(model, '_teacher'):
        model._teacher.load()
    return model.to(device).eval(), remarks


def _read(checkpoint: str) -> Any:
    return compat.load_checkpoint_file(str(compat.fetch_checkpoint(checkpoint)))


def _load_apart(model: nn.Module, saved: Any, checkpoint: str) -> list[str]:
    try:
        missing = load_apart(model, saved.get('mmkd') or {})
    except RuntimeError as error:
        raise CheckpointMismatchError(f'{checkpoint}: {error}') from error
    return [
        f'{checkpoint} holds no {name} (mmkd saves it with the checkpoints of a training): what passes its layers is '
        'shown as at the start of a training.'
        for name in missing
    ]


def _load_plain(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    plain = MODELS.build(copy.deepcopy(cfg.model.architecture))
    load_strictly(plain, _read(checkpoint), name=f'{type(plain).__name__} from {checkpoint}')
    return plain.to(device).eval()
