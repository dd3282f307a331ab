"""run_mindformer.py on a machine where the references stand for a card: the user's own arguments.

python -m tests.ascend_contract.predict --config ... --device_target Ascend --context.mode 1 ...
"""

import runpy
import sys

from tests.ascend_contract.card import card_of_references
from tests.conftest import REPO

if __name__ == "__main__":
    script = str(REPO / "run_mindformer.py")
    sys.argv[0] = script
    with card_of_references():
        runpy.run_path(script, run_name="__main__")
