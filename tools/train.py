"""Train a detector, with or without distillation: MMDetection's `tools/train.py` and its options."""

import argparse

from mmkd.engine.command_line import add_run_arguments, run_command, set_local_rank
from mmkd.engine.launch import load_config, prepare_training, train


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the configuration, or pkg::name such as mmkd::ssim/....py')
    parser.add_argument('--amp', action='store_true', help='train in automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a value from the latest one in the work directory',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_args()
    set_local_rank(args.local_rank, args.launcher)
    cfg = load_config(args.config, args.cfg_options)
    prepare_training(
        cfg,
        config_name=args.config,
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
    )
    train(cfg)


if __name__ == '__main__':
    run_command(main)
