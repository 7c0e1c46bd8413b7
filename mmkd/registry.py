"""Registries of scope `mmkd`: children of MMEngine's root registries.

`type='mmkd.X'` in any MMEngine config finds `X` without `custom_imports`: MMEngine imports
`mmkd.registry` for an unknown scope, and each registry imports its `locations` when first asked.
Children of MMRazor's registries would be invisible to MMEngine's Runner.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='mmkd',
    locations=[
        'mmkd.models.losses',
        'mmkd.models.connectors',
        'mmkd.models.masks',
        'mmkd.models.self_teachers',
        'mmkd.models.distillers',
        'mmkd.models.algorithms',
    ],
)
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='mmkd', locations=['mmkd.datasets.kitti'])
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='mmkd', locations=['mmkd.datasets.transforms'])
METRICS = Registry('metric', parent=ROOT_METRICS, scope='mmkd', locations=['mmkd.evaluation.kitti_metric'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='mmkd', locations=['mmkd.engine.hooks'])
