"""``python -m gpuops`` and the ``gpuops`` command."""

from gpuops.cli import main

if __name__ == "__main__":
    main()
