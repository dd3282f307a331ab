"""MindSpore Transformers' own run_mindformer.py, with this package imported, as on a card.

run_upstream_script.py SCRIPT [its arguments]
"""

import runpy
import sys

from tests.ascend_contract.upstream_callers import on_a_card

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with on_a_card():
        runpy.run_path(sys.argv[0], run_name="__main__")
