"""The scheduler process: lets the workers find each other and ends when all have left.

msrun runs the user's program here too, up to its own call of `init`, which does not return in this
role. Nothing of the program is needed for that.
"""

import sys

from mindspore.communication import init

from mindformers_glm.config.environment import failed_meeting

if __name__ == "__main__":
    try:
        init()
    except RuntimeError as problem:
        sys.exit(f"error: {failed_meeting(problem)}")
