"""Images to look at: as the network sees them, with their objects where an annotation says them.

Boxes are (x1, y1, x2, y2) in px of the original image, unless a name says otherwise.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd.engine.full_precision import full_precision
from mmkd.engine.preflight_data import read_json
from mmkd.near_names import nearest
from mmkd.visualization.detections import Boxes
from mmkd.visualization.grid import Frame


@dataclass(frozen=True)
class Subject:
    """One image.

    Args:
        name: for files and titles.
        picture: (H, W, 3) the original image, uint8, RGB.
        inputs: (3, H, W) the image behind the test pipeline.
        metainfo: what the pipeline noted.
        truth: annotated objects, or None where nobody annotated the image.
    """

    name: str
    picture: np.ndarray
    inputs: Tensor
    metainfo: dict
    truth: Boxes | None

    def batch(self) -> dict[str, list]:
        """A batch of this image for `test_step`, without objects."""
        return dict(inputs=[self.inputs], data_samples=[DetDataSample(metainfo=copy.deepcopy(self.metainfo))])


def image_pipeline(cfg: Config) -> list[dict]:
    """The pipeline of the test or validation set, without its loading of annotations.

    Raises:
        ValueError: there is neither set.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        while dataset is not None and 'pipeline' not in dataset and ('dataset' in dataset or 'datasets' in dataset):
            dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
        if dataset is not None and dataset.get('pipeline'):
            steps = copy.deepcopy(dataset['pipeline'])
            return [step for step in steps if 'Annotations' not in str(step['type'])]
    raise ValueError('The configuration has no test or validation set, whose pipeline would load the images.')


def load_subject(pipeline: Compose, path: str | Path, truth: Boxes | None) -> Subject:
    """Read an image.

    Args:
        pipeline: of `image_pipeline`.
        path: of the image.
        truth: its objects, if known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no image.
    """
    path = Path(path)
    if not path.is_file():
        options = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f'Image {path} does not exist; {nearest(path.name, options)}.')
    picture = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f'{path} is no image that OpenCV can read.')
    packed = pipeline(dict(img_path=str(path), img_id=0))
    metainfo = dict(packed['data_samples'].metainfo)
    metainfo.setdefault('scale_factor', (1.0, 1.0))
    return Subject(path.stem, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), packed['inputs'], metainfo, truth)


def subjects_of(dataset: Any, indices: Sequence[int], pipeline: Compose) -> list[Subject]:
    """Images of a data set by their index, with their annotated objects.

    Args:
        dataset: of the configuration's own validation loader.
        indices: counted from 0.
        pipeline: of `image_pipeline`.

    Raises:
        ValueError: an index that is not there.
    """
    wrong = [index for index in indices if not 0 <= index < len(dataset)]
    if wrong:
        raise ValueError(f'The validation set has the images 0 to {len(dataset) - 1}, not {wrong[0]}.')
    infos = [dataset.get_data_info(index) for index in indices]
    return [load_subject(pipeline, info['img_path'], instance_boxes(info.get('instances') or [])) for info in infos]


def refuse_same_names(subjects: Sequence[Subject]) -> None:
    """Two images of one name would have the same files of pictures.

    Raises:
        ValueError: names them.
    """
    names = [subject.name for subject in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'Two images are called {twice[0]}: their pictures would have the same names.')


def instance_boxes(instances: Sequence[Mapping]) -> Boxes:
    """Objects of MMDetection's data information; ignored ones are left out."""
    kept = [one for one in instances if not one.get('ignore_flag')]
    corners = np.array([one['bbox'] for one in kept], dtype=np.float64).reshape(-1, 4)
    return Boxes(corners, np.array([one['bbox_label'] for one in kept], dtype=np.int64))


class CocoTruth:
    """Objects of images by file name, from an annotation file in COCO's layout.

    Args:
        path: the json.
        classes: names in the order of the labels; other categories are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no COCO file, or none of its categories is a class.
    """

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'Annotation file {path} does not exist.')
        try:
            content = read_json(path)
            labels = {c['id']: classes.index(c['name']) for c in content['categories'] if c['name'] in classes}
            images = {image['id']: str(image['file_name']) for image in content['images']}
            found = [
                (a['image_id'], a['category_id'], a['bbox']) for a in content['annotations'] if not a.get('iscrowd')
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is no COCO annotation file ({type(error).__name__}: {error}).') from error
        if not labels:
            raise ValueError(f'{path} has none of the classes {", ".join(classes)}.')
        self._objects: dict[str, list[dict]] = {name: [] for name in images.values()}
        for image, category, (x, y, w, h) in found:
            if category in labels and image in images:
                entry = dict(bbox=[x, y, x + w, y + h], bbox_label=labels[category])
                self._objects[images[image]].append(entry)

    def of(self, path: str | Path) -> Boxes | None:
        """Objects of an image, found by the end of its path; None where the file does not list it."""
        whole = Path(path).resolve().as_posix()
        names = [name for name in self._objects if f'/{whole}'.endswith('/' + name.lstrip('./'))]
        names = names or [name for name in self._objects if Path(name).name == Path(path).name]
        return instance_boxes(self._objects[names[0]]) if len(names) == 1 else None


def detect(network: nn.Module, subject: Subject) -> Boxes:
    """Detections of a network, in px of the original image."""
    with full_precision(network):
        found = network.test_step(subject.batch())[0].pred_instances
    return Boxes(*(getattr(found, name).detach().cpu().numpy() for name in ('bboxes', 'labels', 'scores')))


def preprocess(model: nn.Module, subject: Subject, boxes: Boxes) -> tuple[Tensor, list, Frame]:
    """The student's batch of one image, its objects in px of the batch, and the picture of it.

    Args:
        model: an algorithm.
        subject: the image.
        boxes: its objects.

    Returns:
        (1, 3, H, W) inputs, one data sample, and the frame for maps.
    """
    batch = model.architecture.data_preprocessor(subject.batch(), False)
    inputs, (sample,) = batch['inputs'], batch['data_samples']
    scale = np.tile(np.asarray(subject.metainfo['scale_factor'], dtype=np.float64)[:2], 2)
    corners = boxes.corners * scale
    sample.gt_instances = InstanceData(
        bboxes=torch.as_tensor(corners, dtype=torch.float32, device=inputs.device),
        labels=torch.as_tensor(boxes.labels, dtype=torch.long, device=inputs.device),
    )
    image = subject.inputs.permute(1, 2, 0).numpy()[..., ::-1]  # (3, H, W) BGR -> (H, W, 3) RGB
    canvas = np.full((*inputs.shape[-2:], 3), 114, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = np.clip(image, 0, 255)
    return inputs, [sample], Frame(canvas, tuple(sample.metainfo['img_shape'][:2]), corners)
