"""A worker that meets the other ranks as an LLM does, and says what kept it from that.

connect_worker.py SIZE
"""

import sys

from mindformers_glm.backends import select_backend
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import launched_rank
from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.sharding import TensorParallel

if __name__ == "__main__":
    size = int(sys.argv[1])
    try:
        select_backend("CPU").connect(
            TensorParallel(size, launched_rank(size)), DeviceSettings()
        ).wait()
    except GlmError as problem:
        sys.exit(f"error: {problem}")
