"""What `mindformers-glm doctor` says about running on Ascend.

Nobody has seen it on a machine with a card: the files and tables it reads are as documented, and as
users of other projects have shown theirs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from mindformers_glm.backends.ascend.installation import find_driver, find_missing, find_toolkit
from mindformers_glm.backends.ascend.npu_smi import NpuChip, parse_chips
from mindformers_glm.config.supported_versions import (
    PINNED,
    VersionSet,
    find_set,
    parse_version,
)
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host
from mindformers_glm.system.sizes import format_bytes

_SECTION = "Ascend"
_NPU_SMI_TIMEOUT_S = 15.0  # takes a second or two on a host with eight cards
_NPU_SMI_FOLDERS = ("/usr/local/bin", "/usr/local/sbin", "/usr/local/Ascend/driver/tools")
# Besides a node for each card.
_MANAGER_NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
_GIVE_DEVICES = "start the container with --device /dev/davinci0 (and each other card) " + " ".join(
    f"--device {node}" for node in _MANAGER_NODES
)
_MOUNT_DRIVER = "start the container with -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro"
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def diagnose(host: Host) -> Iterator[Finding]:
    """Look at cards, driver and CANN; one finding where there is none of them."""
    nodes = host.list_names("dev", "davinci[0-9]*")
    driver, toolkit = find_driver(host), find_toolkit(host)
    if not nodes and driver.version is None and driver.library is None and toolkit is None:
        advice = "Set device_target to CPU: this machine has neither an NPU nor its software."
        yield Finding(_SECTION, "card", "no card, driver or CANN", "problem", advice)
        return
    yield _examine_nodes(host, nodes)
    yield _examine_driver(host)
    yield _examine_cann(host)
    yield _examine_set_env(host)
    yield from _examine_chips(host)
    if _VISIBLE in host.environ:
        yield _examine_visible_devices(host, nodes)
    if host.environ.get("MS_SIMULATION_LEVEL"):
        found = f"MS_SIMULATION_LEVEL is {host.environ['MS_SIMULATION_LEVEL']}"
        advice = "Unset MS_SIMULATION_LEVEL: MindSpore only pretends to have a card."
        yield Finding(_SECTION, "simulation", found, "problem", advice)


def _examine_nodes(host: Host, nodes: Sequence[str]) -> Finding:
    name = "card"
    if not nodes:
        advice = (
            f"No /dev/davinci0: {_GIVE_DEVICES}."
            if host.is_container()
            else "No /dev/davinci0: the driver sees no card; see `lspci -d 19e5:` and `dmesg`, and "
            "install the driver (HDK) again if the card is there."
        )
        return Finding(_SECTION, name, "none", "problem", advice)
    found = f"{len(nodes)} ({', '.join(nodes)})" if len(nodes) < 4 else f"{len(nodes)} cards"
    if missing := [node for node in _MANAGER_NODES if not host.exists(node)]:
        advice = f"{', '.join(missing)} missing: {_GIVE_DEVICES}."
        return Finding(_SECTION, name, found, "problem", advice)
    paths = [*(f"/dev/{node}" for node in nodes), *_MANAGER_NODES]
    if closed := [path for path in paths if not host.can_use(path)]:
        advice = (
            f"This user may not use {closed[0]}: run `usermod -aG HwHiAiUser $USER` as root and "
            "log in again."
        )
        return Finding(_SECTION, name, found, "problem", advice)
    return Finding(_SECTION, name, found)


def _examine_driver(host: Host) -> Finding:
    name = "driver (HDK)"
    driver, wanted = find_driver(host), _wanted_versions(host).hdk
    if driver.library is None:
        advice = (
            f"No libascend_hal.so: {_MOUNT_DRIVER}."
            if host.is_container()
            else f"No libascend_hal.so in {driver.folder}: install the driver (HDK {wanted})."
        )
        return Finding(_SECTION, name, driver.version or "not found", "problem", advice)
    if driver.version is None:
        advice = f"{driver.folder}/version.info cannot be read, so its version is unknown."
        if host.is_container():
            advice += " Mount the driver's folder into the container."
        return Finding(_SECTION, name, f"of unknown version, {driver.library}", "hint", advice)
    found = f"{driver.version}, {driver.folder}"
    if parse_version(driver.version) < parse_version(wanted):
        advice = f"Update driver and firmware on the host to {wanted}: this one is older."
        return Finding(_SECTION, name, found, "hint", advice)
    return Finding(_SECTION, name, found)


def _examine_cann(host: Host) -> Finding:
    name = "CANN"
    toolkit, wanted = find_toolkit(host), _wanted_versions(host).cann
    if toolkit is None:
        advice = f"Install CANN {wanted}, toolkit and kernels, or set ASCEND_HOME_PATH to it."
        return Finding(_SECTION, name, "not found", "problem", advice)
    found = f"{toolkit.version or 'of unknown version'}, {toolkit.folder}"
    if toolkit.version is None:
        advice = f"{toolkit.folder} does not tell its version: {wanted} is the one to use."
        return Finding(_SECTION, name, found, "hint", advice)
    if toolkit.version.lower() != wanted.lower():
        advice = f"Install CANN {wanted}, which belongs to the installed MindSpore."
        return Finding(_SECTION, name, found, "hint", advice)
    return Finding(_SECTION, name, found)


def _examine_set_env(host: Host) -> Finding:
    name = "set_env.sh"
    missing = find_missing(host)
    if not missing:
        return Finding(_SECTION, name, "sourced")
    toolkit = find_toolkit(host)
    script = toolkit.set_env if toolkit else "/usr/local/Ascend/ascend-toolkit/set_env.sh"
    is_partly = bool(host.environ.get("ASCEND_HOME_PATH"))
    found = "sourced, incomplete" if is_partly else "not sourced"
    advice = f"Run `source {script}` in this shell; missing: {', '.join(missing)}."
    return Finding(_SECTION, name, found, "problem", advice)


def _examine_chips(host: Host) -> Iterator[Finding]:
    name = "npu-smi"
    program = host.find_program("npu-smi", _NPU_SMI_FOLDERS)
    if program is None:
        advice = "No npu-smi, so the state of the cards is unknown: it comes with the driver."
        if host.is_container():
            advice = "Start the container with -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi."
        yield Finding(_SECTION, name, "not found", "hint", advice)
        return
    output = host.run((program, "info"), _NPU_SMI_TIMEOUT_S, host.environ)
    if output.problem:
        first = next((line.strip() for line in output.text.splitlines() if line.strip()), "")
        found = f"{output.problem}{': ' if first else ''}{first}"
        advice = (
            "Run `npu-smi info` on the host: while it hangs or fails there, the driver is in no "
            "state to run anything; restart the host, or install the driver again."
        )
        yield Finding(_SECTION, name, found, "hint", advice)
        return
    chips = parse_chips(output.text)
    if not chips:
        advice = "Run `npu-smi info` to look at it: its table is not in a form known here."
        yield Finding(_SECTION, name, "lists no chip", "hint", advice)
        return
    yield _describe_chips(chips)
    yield from _find_bad_chips(chips)
    yield from _find_chip_limits(chips)


def _describe_chips(chips: Sequence[NpuChip]) -> Finding:
    pieces = []
    for name, count in Counter(chip.name for chip in chips).items():
        memory = [
            (chip.total_bytes - chip.used_bytes, chip.total_bytes)
            for chip in chips
            if chip.name == name and chip.total_bytes is not None and chip.used_bytes is not None
        ]
        free, total = min(memory, default=(0, 0))
        there_is = f", at least {format_bytes(free)} of {format_bytes(total)} free"
        pieces.append(f"{count} x {name}{there_is if memory else ''}")
    return Finding(_SECTION, "chips", "; ".join(pieces))


def _find_bad_chips(chips: Sequence[NpuChip]) -> Iterator[Finding]:
    for chip in chips:
        if chip.health != "OK":
            others = ",".join(str(other.device) for other in chips if other.health == "OK")
            advice = (
                f"Run `npu-smi info -t health -i {chip.card}`"
                + (f", and leave it out with {_VISIBLE}={others}" if others else "")
                + "."
            )
            yield Finding(_SECTION, f"chip {chip.device}", chip.health, "hint", advice)


def _find_chip_limits(chips: Sequence[NpuChip]) -> Iterator[Finding]:
    names = sorted({chip.name for chip in chips})
    for name in names:
        kind = name.upper().removeprefix("ASCEND")
        if kind.startswith("310P"):
            advice = (
                "Give --model.model_config.params_dtype and compute_dtype float16, since this chip "
                "has no bfloat16, and model_parallel 1, 2 or 4; upstream's GLM-4 does not name it."
            )
        elif kind.startswith("910B") or kind == "910" or kind.startswith("910_93"):
            continue
        else:
            advice = "Use an Atlas A2 or A3 (910B, Ascend910): GLM-4 is written for those."
        yield Finding(_SECTION, f"chip {name}", "not among upstream's", "hint", advice)


def _examine_visible_devices(host: Host, nodes: Sequence[str]) -> Finding:
    given = host.environ[_VISIBLE]
    name, found = "visible devices", f"{_VISIBLE} is {given or 'empty'}"
    numbers = [int(word) for word in given.split(",") if word.isdecimal()]
    if given != ",".join(map(str, sorted(set(numbers)))) or not numbers:
        advice = (
            f"Unset {_VISIBLE}, or list numbers in ascending order with nothing but commas between "
            "them, such as 0,1: CANN reads no further than that."
        )
        return Finding(_SECTION, name, found, "problem", advice)
    known = {int(node.removeprefix("davinci")) for node in nodes if node[7:].isdecimal()}
    if not host.is_container() and (unknown := sorted(set(numbers) - known)):
        advice = f"Leave {unknown[0]} out: there is no /dev/davinci{unknown[0]}."
        return Finding(_SECTION, name, found, "problem", advice)
    return Finding(_SECTION, name, found)


def _wanted_versions(host: Host) -> VersionSet:
    return find_set(host.find_version("mindformers")) or PINNED
