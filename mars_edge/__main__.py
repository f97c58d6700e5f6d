"""`python -m mars_edge` is `mars-edge`."""

from mars_edge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
