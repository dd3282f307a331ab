"""Are the tokens that README's float32 command chooses those of Hugging Face in float32?

    python scripts/bench/check_float32.py --models 20

Runs the command on random models of every dialect, stored in every type: with one prompt, with
several in batches of two, and on two ranks. Prints a row for each model; exit code 1 if an answer
differs. Of ChatGLM, Hugging Face runs the same weights in the layout of `glm`, as the tests do.
Needs torch and transformers (the `dev` extra).
"""

import argparse
import ast
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import REPO, describe_machine, positive, run_main
from random_models import draw_prompt, read_vocab_size, to_text, to_tokens, write_random_model

sys.path.insert(0, str(REPO))
from tests.model.chatglm_layout import to_glm

DIALECTS, DTYPES = ("glm4", "glm", "chatglm"), ("float32", "bfloat16", "float16")
NUM_TOKENS = 32
# Around the block size, 32, and the rows that graphs have room for.
PROMPT_LENGTHS = (31, 1, 130, 9)
WAYS = ("one prompt", "batch", "two ranks")

Answers = list[list[int]]


def readme_command(folder: Path, *prompts: str) -> list[str]:
    """The command that README gives for float32, for another folder and other prompts."""
    blocks = (REPO / "README.md").read_text(encoding="utf-8").split("\n\n")
    (block,) = [
        block for block in blocks if "compute_dtype float32" in block and "msrun" not in block
    ]
    command = shlex.split(block.replace("\\\n", " "))
    command[command.index("DIR")] = str(folder)
    data = command.index("--predict_data")
    return [*command[1:data], "--max_new_tokens", str(NUM_TOKENS), "--predict_data", *prompts]


def run_alone(command: Sequence[str], work: Path) -> Answers:
    """What a command of `python` prints, run in the folder `work`."""
    return _run([sys.executable, str(REPO / command[0]), *command[1:]], work)


def run_split(command: Sequence[str], work: Path) -> Answers:
    """The same in two processes, as README splits a model."""
    is_parallel = list(command).index("--use_parallel") + 1
    split = [*command[:is_parallel], "True", "--auto_trans_ckpt", "True"]
    split += ["--parallel_config.model_parallel", "2", *command[is_parallel + 1 :]]
    launcher = str(REPO / "scripts" / "msrun_launcher.sh")
    return _run(["bash", launcher, shlex.join(split), "2"], work)


def choose_by_hugging_face(folder: Path, prompts: Answers) -> Answers:
    """Its greedy tokens in float32, without the one that ends a text."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        answers.append(found[0, len(prompt) :].tolist())
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [[token for token in answer if token not in ends] for answer in answers]


def check_model(work: Path, seed: int, ways: Sequence[str] = WAYS) -> dict[str, int]:
    """How many answers of each way to run one model differ; none should."""
    dialect, dtype = DIALECTS[seed % 3], DTYPES[seed // 3 % 3]
    folder = work / "model"
    deviation = write_random_model(folder, dialect, dtype, seed)
    vocab_size = read_vocab_size(folder)
    prompts = [draw_prompt(vocab_size, length, seed) for length in PROMPT_LENGTHS]
    oracle = to_glm(folder, work / "oracle") if dialect == "chatglm" else folder
    expected = choose_by_hugging_face(oracle, prompts)
    (work / "questions.txt").write_text("\n".join(map(to_text, prompts)), encoding="utf-8")
    one = readme_command(folder, to_text(prompts[0]))
    many = [*readme_command(folder, "questions.txt"), "--predict_batch_size", "2"]
    runs = dict(zip(WAYS, ((run_alone, one), (run_alone, many), (run_split, many)), strict=True))
    found = {way: run(command, work) for way, (run, command) in runs.items() if way in ways}
    wrong = {
        way: sum(a != b for a, b in zip(answers, expected[: len(answers)], strict=True))
        for way, answers in found.items()
    }
    print(
        f"{seed:>4} {dialect:<8}{dtype:<9} deviation {deviation:.2f}   "
        + "   ".join(f"{way}: {n} of {len(found[way])} differ" for way, n in wrong.items()),
        flush=True,
    )
    return wrong


def _run(command: list[str], work: Path) -> Answers:
    environment = os.environ | {
        "PYTHONPATH": str(REPO),
        "MASTER_PORT": "auto",
        "PYTHON": sys.executable,
    }
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if ended.returncode != 0:
        raise OSError(f"{shlex.join(command)}: {ended.stderr}")
    answers = [ast.literal_eval(line) for line in ended.stdout.splitlines()]
    return [to_tokens(answer["text_generation_text"][0]) for answer in answers]


def main() -> int:
    """Check each model; 1 if an answer of one differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=positive, default=20)
    parser.add_argument("--first_seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe_machine())
    num_wrong = 0
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.models):
        with tempfile.TemporaryDirectory() as work:
            num_wrong += sum(check_model(Path(work), seed).values())
    print(f"{num_wrong} answers differ")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    run_main(main)
