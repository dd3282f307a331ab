"""MindSpore Transformers resolves folders of GLM-4 and ChatGLM to this package's classes."""

import json
import subprocess
import sys
from pathlib import Path

from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm

_RESOLVE = """
import mindformers_glm
from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM
from mindformers.tools.register import MindFormerModuleType as T, MindFormerRegister as R
for name in NAMES:
    assert R.get_cls(T.MODELS, name).__module__.startswith(MODULE), name
assert R.get_cls(T.CONFIG, MODEL_TYPE).__module__.startswith(MODULE)
from mindformers.core.context.build_context import build_context
build_context({"use_legacy": False, "use_parallel": False, "run_mode": "predict",
               "context": {"mode": 0, "device_target": "CPU"}, "parallel": {}})
for name in NAMES:
    assert R.get_cls(T.MODELS, name).__module__.startswith(MODULE), name
assert type(AutoConfig.from_pretrained(FOLDER)).__module__.startswith(MODULE)
from_config = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER))
assert type(from_config).__name__ == NAMES[-1]
network = AutoModel.from_pretrained(FOLDER)
assert type(network).__name__ == NAMES[-1]
print("RESULT", network.generate([5, 6, 7], do_sample=False, max_new_tokens=4,
                                 ignore_eos=True)[0].tolist())
"""
_CHATGLM = (
    "ChatGLMModel",
    "ChatGLMForConditionalGeneration",
    "InferenceChatGLMForConditionalGeneration",
)


def _resolve(folder: Path, model_type: str, names: tuple[str, ...]) -> list[int]:
    values = {
        "FOLDER": str(folder),
        "MODEL_TYPE": model_type,
        "MODULE": f"mindformers_glm.models.{model_type}",
        "NAMES": names,
    }
    program = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + _RESOLVE
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    line = next(line for line in finished.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


def test_glm_is_resolved_and_answers_as_hugging_face(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, model_type="glm")
    answer = _resolve(folder, "glm", ("GlmForCausalLM", "InferenceGlmForCausalLM"))
    assert answer == [5, 6, 7, *hf_oracle.greedy_tokens(folder, [5, 6, 7], 4)]


def test_chatglm_is_resolved_without_its_own_code(tmp_path: Path) -> None:
    glm = hf_oracle.save_random_checkpoint(tmp_path / "glm", model_type="glm")
    folder = to_chatglm(glm, tmp_path / "chatglm")
    keys = json.loads((folder / "config.json").read_text())
    keys["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (folder / "config.json").write_text(json.dumps(keys))
    for name in ("configuration_chatglm.py", "modeling_chatglm.py"):
        (folder / name).write_text("raise SystemExit('code of the folder was run')\n")
    answer = _resolve(folder, "chatglm", _CHATGLM)
    assert answer == [5, 6, 7, *hf_oracle.greedy_tokens(glm, [5, 6, 7], 4)]
