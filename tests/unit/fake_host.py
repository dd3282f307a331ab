"""Machines that are not there: a folder for /, a mapping for the environment, texts for programs.

The tables of npu-smi are ours, in the forms that users of three kinds of card have shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindformers_glm.system.host import Host, ProgramOutput

GIB = 2**30
VERSIONS = {
    "mindspore": "2.7.1",
    "mindformers": "1.7.0",
    "transformers": "4.51.3",
    "tokenizers": "0.21.0",
    "numpy": "1.26.4",
}
CPUINFO = """\
processor\t: 0
model name\t: Some Processor @ 2.60GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni

processor\t: 1
flags\t\t: fpu
"""
CANN = "/usr/local/Ascend/ascend-toolkit/latest"
DRIVER = "/usr/local/Ascend/driver"
# What `source set_env.sh` leaves behind, as far as anybody looks at it.
SET_ENV = {
    "ASCEND_HOME_PATH": CANN,
    "ASCEND_TOOLKIT_HOME": CANN,
    "ASCEND_OPP_PATH": f"{CANN}/opp",
    "LD_LIBRARY_PATH": f"{CANN}/lib64:{DRIVER}/lib64/driver",
    "PATH": "/usr/local/bin",
}
# Atlas 800I A2: a card is a chip, its memory is HBM.
NPU_SMI_A2 = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.3.rc1                 Version: 25.3.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 91.2        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3400 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 90.4        39                0    / 0             |
| 0                         | 0000:C2:00.0  | 37          0    / 0          41200/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
| 1       0                 | 4711          | python                   | 37850                   |
+===========================+===============+====================================================+
"""
# Atlas 300I Duo: two chips a card, each a device; no HBM column.
NPU_SMI_DUO = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 4       310P3                 | OK              | NA           51                0     / 0             |
| 0       0                     | 0000:81:00.0    | 0            1500 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 4       310P3                 | OK              | NA           48                0     / 0             |
| 1       1                     | 0000:81:00.0    | 0            1460 / 43690                            |
+===============================+=================+======================================================+
"""  # noqa: E501
# Atlas 900 A3: two chips a card, numbered through.
NPU_SMI_A3 = """\
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 2     Ascend910           | OK            | 170.1       45                0    / 0             |
| 0     4                   | 0000:95:00.0  | 0           0    / 0          3100 / 65536         |
+------------------------------------------------------------------------------------------------+
| 2     Ascend910           | Alarm         | -           44                0    / 0             |
| 1     5                   | 0000:97:00.0  | 0           0    / 0          2900 / 65536         |
+===========================+===============+====================================================+
"""


class Programs:
    """Answers in the place of programs, by the name of the file; others are not found.

    commands: what was run.
    """

    def __init__(self, **answers: ProgramOutput) -> None:
        self.commands: list[Sequence[str]] = []
        self._answers = answers

    def __call__(
        self, command: Sequence[str], timeout_s: float, environ: Mapping[str, str]
    ) -> ProgramOutput:
        self.commands.append(command)
        name = Path(command[0]).name.split("-")[0]  # "npu" for npu-smi
        name = "python" if name.startswith("python") else name
        return self._answers.get(name, ProgramOutput(problem="not found"))


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Write files below `root`, by the names they have below /."""
    assert root != Path("/"), "that is this machine"
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def make_host(root: Path, environ: Mapping[str, str] | None = None, **changes: Any) -> Host:
    """A good machine of two cores without a card; `changes` are fields of Host."""
    write_files(
        root,
        {
            "proc/cpuinfo": CPUINFO,
            "proc/meminfo": f"MemTotal: {66 * 2**20} kB\nMemAvailable: {64 * 2**20} kB\n",
            "proc/1/cgroup": "0::/init.scope\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        },
    )
    fields = {
        "processors": frozenset({0, 1}),
        "architecture": "aarch64",
        "python": (3, 11, 7),
        "run": Programs(python=ProgramOutput()),
        "find_version": VERSIONS.get,
        "has_module": lambda name: False,
        "is_port_free": lambda port: True,
        "count_free_bytes": lambda folder: 200 * 2**30,
    }
    return Host(environ or {}, root, **(fields | changes))


def make_ascend_host(
    root: Path,
    environ: Mapping[str, str] = SET_ENV,
    npu_smi: ProgramOutput = ProgramOutput(NPU_SMI_A2),  # noqa: B008  it is frozen
    **changes: Any,
) -> Host:
    """A machine with two cards where everything is as it should be."""
    nodes = ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc")
    write_files(
        root,
        {
            **{f"dev/{node}": "" for node in nodes},
            "etc/ascend_install.info": (
                "UserName=HwHiAiUser\nDriver_Install_Path_Param=/usr/local/Ascend\n"
            ),
            f"{DRIVER}/version.info": (
                "Version=25.3.rc1\nascendhal_version=7.35.23\npackage_version=25.3.rc1\n"
            ),
            f"{DRIVER}/lib64/driver/libascend_hal.so": "",
            f"{CANN}/aarch64-linux/ascend_toolkit_install.info": (
                "package_name=Ascend-cann-toolkit\nversion=8.3.RC1\ninnerversion=V100R001C23\n"
            ),
            f"{CANN}/lib64/libge_runner.so": "",
            f"{CANN}/opp/version.info": "",
            f"{CANN}/../set_env.sh": "",
            "usr/local/bin/npu-smi": "",
        },
    )
    (root / "usr/local/bin/npu-smi").chmod(0o755)
    fields = {
        "run": Programs(python=ProgramOutput(), npu=npu_smi),
        "has_module": lambda name: name in ("acl", "te") and bool(environ.get("ASCEND_HOME_PATH")),
    }
    return make_host(root, environ, **(fields | changes))
