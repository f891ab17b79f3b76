#!/usr/bin/env python3
"""Makes a python that has MLServer, with pinned checksums, and the torch that the models of the benchmarks are made with. Prints its path.

Never: measures anything; that is done by `compare --mlserver`. Fetches once: 60 MB, and 0.7 GB if benches/models/make.py has not been run.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # in the checkout
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "models"))
import make  # noqa: E402 (knows how torch is installed without what it does not need)
from make import libtorch  # noqa: E402


def main():
    try:
        if not (3, 11) <= sys.version_info[:2] <= (3, 12):
            raise libtorch.SetupError("MLServer 1.7 runs with python 3.11 or 3.12: put one first on PATH")
        with libtorch.cache_folder() as cache:
            torch = make.site_packages(make.environment(cache).parents[1])
            python = libtorch.venv(cache, "mlserver", libtorch.pins(HERE / "requirements.txt"))
            # Looked at after its own packages.
            (make.site_packages(python.parents[1]) / "torch.pth").write_text(f"{torch}\n")
        print(python)
    except libtorch.SetupError as error:
        sys.exit(f"penstock benches: {error}")


if __name__ == "__main__":
    main()
