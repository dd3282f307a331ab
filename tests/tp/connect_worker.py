"""A worker that meets the other ranks as an LLM does, and says what kept it from that.

connect_worker.py SIZE [STEPS]: gives them numbers so often then, and prints the first 100.
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
        rank = launched_rank(size)
        group = select_backend("CPU").connect(TensorParallel(size, rank), DeviceSettings())
        group.wait()
        for step in range(int(sys.argv[2]) if len(sys.argv) > 2 else 0):
            numbers = group.gather([rank])
            if step < 100:
                print(f"ranks {numbers}", flush=True)
    except GlmError as problem:
        sys.exit(f"error: {problem}")
