"""`python -m segsweep`. Nothing is imported until it is the program: decoding workers re-import this module."""


def main() -> int:
    from segsweep.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
