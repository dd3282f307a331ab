"""`python -m mindformers_glm.launcher`: what scripts/msrun_launcher.sh calls."""

import importlib.util
import sys


def main() -> int:
    """Run one job with the arguments of this process and return its exit code."""
    if importlib.util.find_spec("mindspore") is None:
        print(
            f"error: The interpreter {sys.executable} (Python {sys.version_info[0]}."
            f"{sys.version_info[1]}) has no mindspore: activate the environment, or name its "
            "interpreter in PYTHON.",
            file=sys.stderr,
        )
        return 1
    try:
        from mindformers_glm.launcher.launch import launch

        return launch(sys.argv[1:])
    except KeyboardInterrupt:  # before the first process was started
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
