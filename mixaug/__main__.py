"""The command `mixaug`, also `python -m mixaug`."""

import sys

USAGE = """\
usage: mixaug compare [options]

commands:
  compare    train with and without each mixing method, and report which of them help on your images

`mixaug compare --help` lists the options."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        from .compare.command import main as compare  # imported late, so that the usage is printed fast

        return compare(argv[1:])
    known = argv[:1] in ([], ["-h"], ["--help"])
    print(USAGE, file=sys.stdout if known else sys.stderr)
    return 0 if known else 2


if __name__ == "__main__":
    sys.exit(main())
