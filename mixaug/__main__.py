"""The command `mixaug`, also `python -m mixaug`."""

import os
import sys
import warnings
from importlib.metadata import version

USAGE = """\
usage: mixaug compare [options]
       mixaug --version

commands:
  compare    train with and without each mixing method, and report which of them help on your data

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
        warnings.filterwarnings("ignore")  # of others, on stderr
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes of runs side by side
        from .compare.command import main as compare  # imported late, so that the usage is printed fast

        return compare(argv[1:])
    if argv[:1] == ["--version"]:
        print(f"mixaug {version('mixaug')}")
        return 0
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(USAGE)
        return 0
    print(f"mixaug: there is no command {argv[0]!r}\n\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
