"""`python -m coordinator.cli` is `archfleet`."""

from coordinator.cli import main

if __name__ == "__main__":
    main(prog_name="archfleet")
