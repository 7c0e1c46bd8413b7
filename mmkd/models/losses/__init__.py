"""Loss modules: weights and reduction around `mmkd.functional`. Importing this package registers them."""

from . import (  # noqa: F401
    attention_map_loss,
    decoupled_logit_loss,
    exploration_loss,
    feature_alignment_loss,
    fsp_loss,
    guidance_loss,
    lp_loss,
    masked_feature_loss,
    pyramid_loss,
    soft_target_loss,
    ssim_loss,
)
