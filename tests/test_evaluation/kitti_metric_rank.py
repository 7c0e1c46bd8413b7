"""One process of a distributed evaluation: `kitti_metric_rank.py RANK WORLD STORE LABELS` prints the metrics as json.

The ranks see the frames alternately; the last rank repeats the first frame, as MMEngine's sampler pads.
"""

import json
import os
import sys

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import distributed

from mmkd.evaluation.kitti_metric import KittiMetric


def main() -> None:
    rank, world, store, labels = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if world > 1:
        distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world)
    metric = KittiMetric(labels)
    metric.dataset_meta = {'classes': ('Car',)}
    frames = list(range(45))
    padded = frames + frames[: -len(frames) % world]
    for index in padded[rank::world]:
        # Every third car is found too far to the right.
        box = torch.tensor([[100.0 + 60 * (index % 3 == 0), 100, 200 + 60 * (index % 3 == 0), 200]])
        found = InstanceData(bboxes=box, scores=torch.tensor([0.2 + index / 100]), labels=torch.tensor([0]))
        sample = DetDataSample(
            metainfo={'img_path': f'{index:06d}.png', 'ori_shape': (375, 1242)}, pred_instances=found
        )
        metric.process(None, [sample.to_dict()])
    print(json.dumps(metric.evaluate(len(frames))), flush=True)
    if world > 1:
        distributed.barrier()
        os._exit(0)  # gloo's threads may wait forever for a process that has already left


if __name__ == '__main__':
    main()
