"""run_mindformer.py on a machine where the references stand for a card: the user's own arguments.

python -m tests.ascend_contract.predict --config ... --device_target Ascend ... [THEN --config ...]
"""

import runpy
import sys

from tests.ascend_contract.card import card_of_references
from tests.conftest import REPO

THEN = "THEN"  # what follows is another command of the same process, which takes long to start


def main(words: list[str]) -> None:
    script = str(REPO / "run_mindformer.py")
    while words:
        end = words.index(THEN) if THEN in words else len(words)
        sys.argv, words = [script, *words[:end]], words[end + 1 :]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            if ended.code != 0:
                raise


if __name__ == "__main__":
    with card_of_references():
        main(sys.argv[1:])
