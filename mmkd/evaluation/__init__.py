"""Metrics, and KITTI's evaluation in numpy alone: imports nothing, so that `tools/eval_kitti.py` starts fast."""
