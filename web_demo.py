"""The ChatGLM2 guide's web_demo.py, for the models of this project: a chat in the browser.

python web_demo.py --model_path DIR --tp_size 1
"""

import sys
from pathlib import Path

from mindformers_glm.serving.web.guide import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
