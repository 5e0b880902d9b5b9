"""`python -m self_improve`, which works from a bare checkout too."""
from self_improve.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
