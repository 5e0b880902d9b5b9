"""`python -m self_improve`, and the command `self-improve`."""
import os
import sys


def main() -> int:
    """The command line; interrupted while torch is still loading, it ends as quietly as later."""
    # read when torch is loaded: threads that wait for each other sleep, instead of keeping a core from other programs
    # (lesson 56 measures it)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from self_improve.cli import main as command
        return command()
    except KeyboardInterrupt:
        print("self-improve: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
