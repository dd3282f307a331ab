"""Variables of the environment that the GLM guides name or that change a run, and who reads them.

Who reads what was looked up in the Python files and libraries of mindspore 2.7.1 and mindformers
1.7.0: tests/unit/config/test_known_variables.py does it again.
"""

from dataclasses import dataclass

BOTH = ("CPU", "Ascend")
ON_CPU, ON_ASCEND = ("CPU",), ("Ascend",)
NOWHERE = ()


@dataclass(frozen=True)
class KnownVariable:
    """A variable.

    Attributes:
        name: of the variable.
        reader: what reads it: a library, or a part of this project.
        effect: what it does there.
        devices: on which it has an effect here.
        ids: rows of docs/feature_table.md that name it.
        advice: what to do where it has one of `bad_values`, or any value where there are none.
    """

    name: str
    reader: str
    effect: str
    devices: tuple[str, ...]
    ids: tuple[str, ...] = ()
    advice: str = ""
    bad_values: tuple[str, ...] = ()

    def describe(self, device_target: str) -> str:
        """What it does, who reads it, and whether that is so on this device."""
        if device_target in self.devices:
            return f"{self.effect} (read by {self.reader})"
        where = f" on {device_target}" if self.devices and device_target else ""
        return f"no effect{where}; {self.effect} (read by {self.reader})"

    def advise(self, value: str, device_target: str) -> str:
        """What to do about this value on this device; empty: nothing."""
        is_bad = not self.bad_values or value.lower() in self.bad_values
        return self.advice if is_bad and device_target in self.devices else ""


_TORCH = "torch_npu, which is not used here"
_ATB_MODELS = "MindIE's ATB models, which are not used here"
_GUIDES = ("A33", "B15")

KNOWN_VARIABLES = (
    KnownVariable(
        "HCCL_OP_BASE_FFTS_MODE_ENABLE",
        "CANN's HCCL",
        "how its collectives are issued to the card; MindSpore does not look at it",
        ON_ASCEND,
        _GUIDES,
    ),
    KnownVariable(
        "HCCL_BUFFSIZE",
        "CANN's HCCL",
        "MB of device memory for receiving, as many for sending, in each group; 200 unless set",
        ON_ASCEND,
        _GUIDES,
    ),
    KnownVariable(
        "TASK_QUEUE_ENABLE", _TORCH, "queues operators in a second thread", NOWHERE, _GUIDES
    ),
    KnownVariable(
        "ATB_OPERATION_EXECUTE_ASYNC",
        _ATB_MODELS,
        "launches operators asynchronously",
        NOWHERE,
        _GUIDES,
    ),
    KnownVariable(
        "ATB_LAYER_INTERNAL_TENSOR_REUSE",
        _ATB_MODELS,
        "lets layers share their scratch memory",
        NOWHERE,
        ("B15",),
    ),
    KnownVariable(
        "ATB_USE_TILING_COPY_STREAM",
        _ATB_MODELS,
        "copies tiling data in a stream of its own",
        NOWHERE,
        ("B15",),
    ),
    KnownVariable(
        "ATB_HOME_PATH",
        "the ATB library inside MindSpore",
        "set by ATB's set_env.sh, which is not needed: MindSpore brings its own ATB",
        ON_ASCEND,
        ("B03",),
    ),
    KnownVariable(
        "ATB_SPEED_HOME_PATH",
        _ATB_MODELS,
        "set by MindIE-LLM's set_env.sh, which is not needed",
        NOWHERE,
        ("B03",),
    ),
    KnownVariable(
        "ASCEND_RT_VISIBLE_DEVICES",
        "CANN's runtime and MindSpore",
        "the cards that a process sees, in ascending order; device_id counts them from 0",
        ON_ASCEND,
        ("A29", "C35"),
    ),
    KnownVariable(
        "DEVICE_ID",
        "this project and MindSpore",
        "the card of a process of its own that has no device_id, counted as that is",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_ENABLE_LCCL",
        "MindSpore",
        "on: collectives of one host by shared memory (LCCL) instead of HCCL",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_ALLOC_CONF",
        "MindSpore",
        "how device memory is allotted, such as enable_vmm:False",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_ENABLE_INTERNAL_KERNELS",
        "MindSpore",
        "off: none of the fast inference operators that infer_boost brings",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_INTERNAL_DISABLE_CUSTOM_KERNEL_LIST",
        "MindSpore",
        "names fast inference operators that are not to be used",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_SIMULATION_LEVEL",
        "MindSpore",
        "0 to 3: pretends to have a card and computes nothing; unset it",
        ON_ASCEND,
    ),
    KnownVariable(
        "MS_DEV_RUNTIME_CONF", "MindSpore", "switches of its runtime, for developers", BOTH
    ),
    KnownVariable(
        "MS_NODE_TIMEOUT",
        "MindSpore",
        "seconds without a sign of life after which a rank counts as gone; the launcher sets 20",
        BOTH,
    ),
    KnownVariable(
        "MS_ROLE",
        "MindSpore and this project",
        "which process of a job this is; the launcher sets it",
        BOTH,
        advice="Unset MS_ROLE: the launcher sets it for the processes that it starts.",
    ),
    KnownVariable(
        "ENFORCE_EAGER",
        "MindSpore Transformers",
        "whether its network runs operator by operator; overwritten from context.mode",
        ON_ASCEND,
    ),
    KnownVariable(
        "RUN_MODE",
        "MindSpore Transformers",
        "chooses its inference network; overwritten with predict",
        ON_ASCEND,
    ),
    KnownVariable(
        "ENABLE_QUANT",
        "this project",
        "1: the quantized weights of QUANT_WEIGHT_PATH run in place of the checkpoint's",
        BOTH,
        ("B18",),
    ),
    KnownVariable(
        "ENABLE_SPARSE",
        "this project",
        "1: the same, of W8A8S weights; those of COMPRESS_WEIGHT_PATH are not read",
        BOTH,
        ("B19",),
    ),
    KnownVariable(
        "QUANT_WEIGHT_PATH",
        "this project",
        "folder of .npy files or of msModelSlim, for ENABLE_QUANT and ENABLE_SPARSE",
        BOTH,
        ("B11", "B18", "B19"),
    ),
    KnownVariable(
        "COMPRESS_WEIGHT_PATH",
        "the guide's own network",
        "compressed W8A8S weights, whose format is not public",
        NOWHERE,
        ("B19",),
    ),
    KnownVariable(
        "HCCL_DETERMINISTIC", "CANN's HCCL and MindSpore", "true: sums in a fixed order", ON_ASCEND
    ),
    KnownVariable(
        "LCCL_DETERMINISTIC",
        "LCCL inside MindSpore",
        "1: sums in a fixed order; set where infer_precision_sync or deterministic asks for it",
        ON_ASCEND,
    ),
    KnownVariable(
        "HCCL_CONNECT_TIMEOUT", "CANN's HCCL", "seconds that ranks wait for each other", ON_ASCEND
    ),
    KnownVariable(
        "ASCEND_LAUNCH_BLOCKING", _TORCH, "waits for each operator, to find a fault", NOWHERE
    ),
    KnownVariable(
        "PYTORCH_NPU_ALLOC_CONF", _TORCH, "how device memory is allotted", NOWHERE, ("C35",)
    ),
    KnownVariable(
        "INF_NAN_MODE_ENABLE",
        _TORCH,
        "whether an overflow gives infinity; MindSpore's is MS_ASCEND_CHECK_OVERFLOW_MODE",
        NOWHERE,
        ("A18",),
    ),
    KnownVariable("GLOG_v", "MindSpore", "how much it logs: 0 most, 3 errors only", BOTH),
    KnownVariable(
        "OMP_NUM_THREADS",
        "OpenMP",
        "threads of the operators without --num_threads; 1, as MindIE advises, is slow",
        ON_CPU,
        ("A20",),
    ),
    KnownVariable(
        "OMP_WAIT_POLICY",
        "OpenMP",
        "active: waiting threads spin, in the way of MindSpore's",
        ON_CPU,
        advice="Unset OMP_WAIT_POLICY: threads that spin take the cores from MindSpore's.",
        bad_values=("active",),
    ),
    KnownVariable(
        "OPENBLAS_NUM_THREADS", "NumPy", "threads of its products, which no model uses", BOTH
    ),
    KnownVariable(
        "MALLOC_ARENA_MAX", "the C library", "number of its heaps; weights lie in none", BOTH
    ),
    KnownVariable(
        "LD_PRELOAD",
        "the dynamic linker",
        "libraries loaded first; libgomp, where MindSpore's start fails with a static TLS block",
        BOTH,
        ("A28",),
    ),
    KnownVariable(
        "MINDFORMERS_GLM_ISA",
        "this project",
        "instruction set of the operators, instead of the best",
        ON_CPU,
    ),
    KnownVariable(
        "MINDFORMERS_GLM_API_KEY", "this project", "a key that `serve` asks requests for", BOTH
    ),
    KnownVariable("MINDFORMERS_GLM_CACHE", "this project", "folder of the packed caches", ON_CPU),
    KnownVariable(
        "MASTER_PORT", "scripts/msrun_launcher.sh", "port at which processes meet", BOTH, ("A29",)
    ),
)
