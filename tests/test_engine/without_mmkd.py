"""Loads exported pairs where mmkd and MMRazor cannot be imported; prints the detections on an image as JSON.

Arguments: a picture, then names of exported checkpoints.
"""

import json
import sys
import warnings
from importlib.abc import MetaPathFinder


class Refusal(MetaPathFinder):
    """Makes the import of mmkd and MMRazor fail, wherever they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmkd', 'mmrazor'):
            raise ModuleNotFoundError(f'{name} is not to be imported')
        return None


sys.meta_path.insert(0, Refusal())
warnings.simplefilter('ignore')

from mmdet.apis import inference_detector, init_detector  # noqa: E402

image, *checkpoints = sys.argv[1:]
found = {}
for checkpoint in checkpoints:
    model = init_detector(checkpoint.replace('.pth', '.py'), checkpoint, device='cpu')
    instances = inference_detector(model, image).pred_instances
    found[checkpoint] = dict(
        classes=list(model.dataset_meta['classes']),
        bboxes=instances.bboxes.tolist(),
        scores=instances.scores.tolist(),
        labels=instances.labels.tolist(),
    )
try:
    import mmkd

    found['imported'] = mmkd.__file__
except ModuleNotFoundError:
    found['imported'] = None
print('FOUND' + json.dumps(found))
