"""COCO's metrics gathered over two processes are those of one, also where the images do not divide evenly."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.dataset import DefaultSampler
from mmengine.structures import InstanceData
from torch import distributed

IMAGES = 7
TRUTH = [20.0, 10.0, 40.0, 30.0]  # x y w h, px


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    images = [dict(id=i, file_name=f'{i}.png', width=96, height=64) for i in range(IMAGES)]
    boxes = [dict(id=i + 1, image_id=i, category_id=1, bbox=TRUTH, area=1200, iscrowd=0) for i in range(IMAGES)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    return tmp_path / 'truth.json'


def evaluate(annotations: Path, counted: int = IMAGES) -> dict[str, float]:
    """Metrics of this process's share as MMEngine's sampler deals it out; the last ones are dealt out twice."""
    metric = CocoMetric(ann_file=str(annotations))
    metric.dataset_meta = dict(classes=('thing',))
    for index in DefaultSampler(range(IMAGES), shuffle=False):
        shift = 3.0 * (index % 4)
        box = torch.tensor([[20.0 + shift, 10, 60 + shift, 40]])
        sample = DetDataSample(metainfo=dict(img_id=index, ori_shape=(64, 96)))
        sample.pred_instances = InstanceData(
            bboxes=box, scores=torch.tensor([0.9 - index / 10]), labels=torch.zeros(1, dtype=torch.long)
        )
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long))
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(counted)


def by_two(annotations: Path, counted: int) -> list[dict]:
    """What two forked processes find."""
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                store = f'file://{annotations.parent}/store{counted}'
                distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
                found = evaluate(annotations, counted)
                (annotations.parent / f'{rank}.json').write_text(json.dumps(found))
                distributed.barrier()
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return [json.loads((annotations.parent / f'{rank}.json').read_text()) for rank in range(2)]


def test_two_processes_measure_what_one_does(annotations: Path) -> None:
    alone = evaluate(annotations)
    assert 0.1 < alone['coco/bbox_mAP'] < 0.9
    assert by_two(annotations, IMAGES) == [alone, alone]


def test_an_image_dealt_out_twice_would_be_seen(annotations: Path) -> None:
    assert by_two(annotations, IMAGES + 1)[0] != evaluate(annotations)
