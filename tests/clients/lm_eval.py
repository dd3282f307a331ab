"""lm-eval's `local-completions` against a served glm4-mini: two tasks, from files written here.

    python tests/clients/lm_eval.py [PYTHON]

PYTHON is an interpreter that has lm-eval 0.4.13; without it, one is made in a temporary folder and
lm-eval[api] and transformers are installed into it. The tasks:

    choice: which of four answers is the likeliest (token ids with echo and logprobs);
    fact: what the model writes itself.

Questions and answers are glm4-mini's held-out ones. Both scores are compared with what `LLM` finds
for the same prompts in this process, and must be equal; tokenizers of both kinds are tried.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers_glm import LLM, SamplingParams
from tests.clients.conftest import API_KEY, start_server

MINI = Path(__file__).resolve().parents[2] / "mindformers_glm" / "assets" / "glm4-mini"
_PACKAGES = ("lm-eval[api]==0.4.13", "transformers==4.51.3")
_HEAD = "[gMASK]<sop><|user|>\n"
_LETTERS = ("A. ", "B. ", "C. ", "D. ")
_MAX_TOKENS = 64
_CHOICE = """task: glm_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
_FACT = """task: glm_fact
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs:
  until: ["<|user|>"]
  max_gen_toks: {max_tokens}
  temperature: 0
metric_list:
  - metric: exact_match
"""


def read_questions(category: str) -> list[dict[str, Any]]:
    """Held-out questions of one turn, with the prompt as the chat template writes it."""
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for question in map(json.loads, lines):
        if question["category"].startswith(category) and len(question["messages"]) == 1:
            text = question["messages"][0]["content"]
            prompt = f"{_HEAD}{text}<|assistant|>"
            answer = "\n" + question["answer"]  # the model ends the role's line
            found.append({"prompt": prompt, "answer": answer, "text": text})
    return found


def write_tasks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Write data and tasks; return the rows of each."""
    choices = []
    for row in read_questions("choice"):
        options = [line[3:] for line in row["text"].splitlines() if line[:3] in _LETTERS]
        form = "\n答案是 {} {}。" if "答案是" in row["answer"] else "\nThe answer is {} {}."
        pairs = zip(options, _LETTERS, strict=True)
        texts = [form.format(option, letter[0]) for option, letter in pairs]
        label = texts.index(row["answer"])
        choices.append({"prompt": row["prompt"], "choices": texts, "label": label})
    facts = [{key: row[key] for key in ("prompt", "answer")} for row in read_questions("fact")]
    rows = {"glm_choice": choices, "glm_fact": facts}
    for (name, own), task in zip(rows.items(), (_CHOICE, _FACT), strict=True):
        file = folder / f"{name}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in own]
        file.write_text("".join(lines), encoding="utf-8")
        text = task.format(file=file, max_tokens=_MAX_TOKENS)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return rows


def score_here(rows: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """What `LLM` finds for the same prompts."""
    with LLM(str(MINI)) as llm:
        num_right = 0
        for row in rows["glm_choice"]:
            start = llm.tokenizer.encode(row["prompt"])
            sums = []
            for text in row["choices"]:
                ids = llm.tokenizer.encode(row["prompt"] + text)
                wish = SamplingParams(max_tokens=1, prompt_logprobs=1)
                (output,) = llm.generate([ids], wish)
                assert output.prompt_logprobs is not None
                entries = list(zip(ids, output.prompt_logprobs, strict=True))[len(start) :]
                sums.append(sum(entry[i].logprob for i, entry in entries if entry is not None))
            num_right += sums.index(max(sums)) == row["label"]
        prompts = [llm.tokenizer.encode(row["prompt"]) for row in rows["glm_fact"]]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=_MAX_TOKENS, temperature=0))
    pairs = zip(outputs, rows["glm_fact"], strict=True)
    num_exact = sum(output.text == row["answer"] for output, row in pairs)
    return {
        "glm_choice": num_right / len(rows["glm_choice"]),
        "glm_fact": num_exact / len(rows["glm_fact"]),
    }


def run_lm_eval(python: str, url: str, folder: Path, backend: str) -> dict[str, float]:
    """The scores that lm-eval finds."""
    arguments = [
        f"model=glm4-mini,base_url={url}/v1/completions,tokenizer_backend={backend}",
        "tokenizer=" + str(MINI) if backend == "huggingface" else "auth_token=" + API_KEY,
        "num_concurrent=4",
    ]
    command = [python, "-m", "lm_eval", "--model", "local-completions", "--batch_size", "4"]
    command += ["--model_args", ",".join(arguments), "--include_path", str(folder)]
    command += ["--tasks", "glm_choice,glm_fact", "--output_path", str(folder / backend)]
    environment = os.environ | {"OPENAI_API_KEY": API_KEY, "HF_DATASETS_OFFLINE": "1"}
    environment |= {"HF_HOME": str(folder / "home")}
    environment.pop("PYTHONPATH", None)
    subprocess.run(command, check=True, env=environment)
    (file,) = (folder / backend).rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {
        "glm_choice": found["glm_choice"]["acc,none"],
        "glm_fact": found["glm_fact"]["exact_match,none"],
    }


def make_python(folder: Path) -> str:
    """Make an interpreter with lm-eval."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *_PACKAGES], check=True)
    return python


def main() -> int:
    if len(sys.argv) > 2:
        print(f"usage: {sys.argv[0]} [PYTHON]", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = sys.argv[1] if len(sys.argv) == 2 else make_python(folder / "venv")
        rows = write_tasks(folder)
        expected = score_here(rows)
        server = start_server("--api_key", API_KEY, cwd=folder)
        try:
            found = {
                backend: run_lm_eval(python, server.url, folder, backend)
                for backend in ("huggingface", "remote")
            }
        finally:
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(60)
    print("LLM:", expected)
    for backend, scores in found.items():
        print(f"lm-eval, {backend} tokenizer:", scores)
    return int(code != 0 or any(scores != expected for scores in found.values()))


if __name__ == "__main__":
    sys.exit(main())
