"""`python -m retone` is the command line."""

from retone.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
