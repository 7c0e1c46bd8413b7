"""Connectors: a student or teacher feature -> a comparable feature. Importing this package registers them."""

from . import (  # noqa: F401
    conv,
    cross_scale,
    exploration_coder,
    feature_alignment,
    feature_resampler,
    intermediate_guidance,
    pyramid,
    spatial_attention,
)
