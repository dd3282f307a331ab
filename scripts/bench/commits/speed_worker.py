"""Worker of compare_speed.py, which runs with the benchmarks that its own commit has.

speed_worker.py generate FOLDER ...
    what peers/mindformers_glm_worker.py does, without a packed cache
speed_worker.py overhead FOLDER
    {"steps": 20} -> {"step": [20 numbers], "outside": [20 numbers]}: seconds of each step, and
    what of them is not in operators, by bench_step_overhead.py
"""

import functools
import json
import os
import sys

from mindformers_glm import LLM

CONTEXT = 512


def serve_generate() -> None:
    """Answer as the commit's worker of bench_generate.py does."""
    import mindformers_glm_worker
    from protocol import serve

    mindformers_glm_worker.LLM = functools.partial(LLM, packed_cache="off")
    serve(mindformers_glm_worker.OurRunner)


def serve_overhead(folder: str) -> None:
    """Decode one sequence, as often as asked."""
    import bench_step_overhead

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    llm = LLM(
        folder,
        quantization="w8a16",
        max_num_seqs=1,
        max_model_len=2048,
        prompt_lookup_num_tokens=0,
        packed_cache="off",
    )
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        greedy = bench_step_overhead.SETTINGS["greedy"]
        watch = bench_step_overhead.measure(llm, CONTEXT, json.loads(line)["steps"], greedy)
        step = [one["step"] for one in watch.steps]
        outside = [one["step"] - one["model kernels"] for one in watch.steps]
        print(json.dumps({"step": step, "outside": outside}), file=answers, flush=True)


if __name__ == "__main__":
    what = sys.argv.pop(1)
    if what == "generate":
        serve_generate()
    else:
        serve_overhead(sys.argv[1])
