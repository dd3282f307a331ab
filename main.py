"""The ChatGLM2 guide's main.py, for the models of this project: a chat on the terminal.

python main.py --mode cli_demo --model_path DIR --tp_size 1
"""

import sys
from pathlib import Path

from mindformers_glm.serving.chat.guide import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
