"""`python -m self_improve`, and the command `self-improve`."""
import sys


def main() -> int:
    """The command line; interrupted while torch is still loading, it ends as quietly as later."""
    try:
        from self_improve.cli import main as command
        return command()
    except KeyboardInterrupt:
        print("self-improve: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
