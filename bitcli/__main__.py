"""`bitlab`, and `python -m bitcli`."""

import signal
import sys
from importlib import import_module
from importlib.util import find_spec

NEEDED = ("rich", "typer")
MISSING, TERMINATED = 2, 128 + signal.SIGTERM


def main() -> None:
    """Runs the command line, or says which packages it lacks."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"error: bitlab needs {' and '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        sys.exit(MISSING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what is half written gets deleted
    import_module("bitcli.app").app(prog_name="bitlab")


if __name__ == "__main__":
    main()
