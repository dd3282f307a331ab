"""`python -m mindformers_glm` is the console command `mindformers-glm`."""

import sys

from mindformers_glm.serving.cli import main

if __name__ == "__main__":
    sys.exit(main())
