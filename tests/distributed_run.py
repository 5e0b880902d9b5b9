"""A small run as torchrun starts it: `distributed_run.py FOLDER [BASE] key=value …`. A mistake is one sentence."""
import sys
from functools import partial

from self_improve.config import Config, LoopConfig, configure
from self_improve.distributed import make_loop, on_first_rank, open_run, process_group
from self_improve.model import ModelConfig
from self_improve.optimizers import TrainConfig
from self_improve.records import Run

CONFIG = Config(
    high=3, model=ModelConfig(layers=1, heads=2, width=16, ffn=16), train=TrainConfig(steps=8, batch=8),
    loop=LoopConfig(rounds=2, steps=4, problems=32, members=2, evaluate=16, final=16))


def main(folder, *arguments):
    base = [a for a in arguments if "=" not in a]
    config = configure(CONFIG, dict(a.split("=", 1) for a in arguments if "=" in a))
    with process_group() as (rank, _):
        on_first_rank(partial(Run.create, folder, config))
        loop = make_loop(config, open_run(folder, config), base=Run(base[0]) if base else None)
        for r in loop:
            # one write a line: `print` may write its newline apart, and the other rank's line falls between
            sys.stdout.write(f"rank {rank}: round {r.round}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    try: main(*sys.argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
