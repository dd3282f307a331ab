"""A worker that meets the other ranks as an LLM does, and says what kept it from that.

connect_worker.py SIZE
"""

import sys

from mindformers_glm.config.run_config import launched_rank
from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.kernels.cpu.collectives import connect

if __name__ == "__main__":
    size = int(sys.argv[1])
    try:
        connect(TensorParallel(size, launched_rank(size))).wait()
    except GlmError as problem:
        sys.exit(f"error: {problem}")
