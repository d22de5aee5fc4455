"""Which keys the sections of a cfg may have, and what each does to inference.

Three kinds: keys that are read; keys that would change what the network computes, accepted at the one value that
does not; and keys of training, which are known and not looked at. They are the keys that darknet's parser reads.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of one kind of section, besides those that every section may have."""

    read: frozenset[str]
    #: Key -> the one value that is accepted; "" where none is.
    neutral: dict[str, str]
    training: frozenset[str]


def _keys(read: str, neutral: dict[str, str] | None = None, training: str = "") -> Keys:
    return Keys(
        read=frozenset(read.split()),
        neutral=_EVERY_NEUTRAL | (neutral or {}),
        training=frozenset(training.split()) | _EVERY_TRAINING,
    )


#: Of every section.
_EVERY_TRAINING = frozenset(
    "burnin_update clip dont_update learning_rate onlyforward stopbackward stream train_only_bn wait_stream".split()
)
_EVERY_NEUTRAL = {"dontload": "0", "dontloadscales": "0"}

_NET_TRAINING = (
    "B1 B2 adam adversarial_lr angle aspect attention augment_speed badlabels_rejection_percentage batch blur"
    " burn_in center contrastive contrastive_color contrastive_jit_flip cutmix decay dynamic_minibatch ema_alpha"
    " eps equidistant_point exposure flip gamma gaussian_noise hue label_smooth_eps learning_rate_min letter_box"
    " loss_scale max_batches max_chart_loss max_crop min_crop mixup momentum mosaic mosaic_bound multi_scale"
    " num_sigmas_reject_badlabels optimized_memory policy power random resize_step saturation scale scales"
    " seq_scales sequential_subdivisions sgdr_cycle sgdr_mult show_receptive_field step steps subdivisions"
    " time_steps track try_fix_nan unsupervised use_cuda_graph weights_reject_freq workspace_size_limit_MB"
)
_YOLO_TRAINING = (
    "beta_nms cls_normalizer counters_per_class delta_normalizer dets_for_show dets_for_track embedding_layer"
    " focal_loss ignore_thresh iou_loss iou_normalizer iou_thresh iou_thresh_kind jitter label_smooth_eps map max"
    " max_delta nms_kind nms_threshold obj_normalizer objectness_smooth random resize show_details sim_thresh"
    " thresh track_ciou_norm track_history_size truth_thresh uc_normalizer"
)
_REGION_TRAINING = (
    "absolute bias_match class_scale coord_scale focal_loss jitter log mask_scale max noobject_scale object_scale"
    " random rescore resize sqrt thresh"
)
_CONVOLUTION_READ = "activation batch_normalize cbn dilation filters groups pad padding size stride stride_x stride_y"
_CONVOLUTION_NEUTRAL = {
    **dict.fromkeys("antialiasing binary coordconv flipped rotate stretch stretch_sway sway xnor".split(), "0"),
    "share_index": "",
}
_REGION_NEUTRAL = {"coords": "4", "background": "0", "classfix": "0", "tree": "", "map": ""}
_CONVOLUTION_KEYS = _keys(
    _CONVOLUTION_READ, _CONVOLUTION_NEUTRAL, "angle assisted_excitation bin_output dot grad_centr reverse"
)
_MAXPOOL_KEYS = _keys(
    "padding size stride stride_x stride_y",
    {"antialiasing": "0", "maxpool_depth": "0", "maxpool_zero_nonmax": "0"},
    "out_channels",
)
#: By section; every section that is supported stands here.
KEYS: dict[str, Keys] = {
    **dict.fromkeys(("net", "network"), _keys("channels height width", {"inputs": ""}, _NET_TRAINING)),
    **dict.fromkeys(("convolutional", "conv"), _CONVOLUTION_KEYS),
    **dict.fromkeys(("maxpool", "max"), _MAXPOOL_KEYS),
    **dict.fromkeys(("avgpool", "avg"), _keys("")),
    "upsample": _keys("stride", {"scale": "1"}),
    "reorg": _keys("stride", {"reverse": "0", "flatten": "0", "extra": "0"}),
    "route": _keys("groups group_id layers"),
    "shortcut": _keys("activation from", {"weights_type": "none", "alpha": "1", "beta": "1"}, "weights_normalization"),
    "scale_channels": _keys("activation from scale_wh"),
    "sam": _keys("activation from"),
    "dropout": _keys("", None, "dropblock dropblock_size_abs dropblock_size_rel probability"),
    "yolo": _keys("anchors classes mask new_coords num scale_x_y", None, _YOLO_TRAINING),
    "region": _keys("anchors classes num softmax", _REGION_NEUTRAL, _REGION_TRAINING),
}
