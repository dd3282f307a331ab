"""Machines with cards, whole and broken, and what is said about each."""

from pathlib import Path

import pytest

from mindformers_glm.backends.ascend.diagnosis import diagnose
from mindformers_glm.core.finding import Finding
from mindformers_glm.system.host import Host, ProgramOutput
from tests.unit.fake_host import (
    CANN,
    DRIVER,
    NPU_SMI_A3,
    NPU_SMI_DUO,
    SET_ENV,
    Programs,
    make_ascend_host,
    make_host,
    write_files,
)


def states(host: Host) -> dict[str, str]:
    return {finding.name: finding.state for finding in diagnose(host)}


def find(host: Host, name: str) -> Finding:
    (found,) = (finding for finding in diagnose(host) if finding.name == name)
    return found


def test_a_machine_as_it_should_be_is_fine(tmp_path: Path) -> None:
    findings = list(diagnose(make_ascend_host(tmp_path)))
    assert [(finding.name, finding.found, finding.state) for finding in findings] == [
        ("card", "2 (davinci0, davinci1)", "ok"),
        ("driver (HDK)", f"25.3.rc1, {DRIVER}", "ok"),
        ("CANN", f"8.3.RC1, {CANN}", "ok"),
        ("set_env.sh", "sourced", "ok"),
        ("chips", "2 x 910B3, at least 23.8 GB of 64.0 GB free", "ok"),
    ]


def test_nothing_of_it_is_one_problem(tmp_path: Path) -> None:
    (finding,) = diagnose(make_host(tmp_path))
    assert (finding.found, finding.state) == ("no card, driver or CANN", "problem")


def remove(root: Path, *names: str) -> None:
    for name in names:
        (root / name.lstrip("/")).unlink()


def test_cann_that_is_not_sourced_is_named_with_its_script(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, {"PATH": "/usr/local/bin"})
    finding = find(host, "set_env.sh")
    assert (finding.found, finding.state) == ("not sourced", "problem")
    assert "`source /usr/local/Ascend/ascend-toolkit/set_env.sh`" in finding.advice
    assert "libge_runner.so" in finding.advice
    assert "acl" in finding.advice
    assert find(host, "CANN").state == "ok"  # it is there


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "LD_LIBRARY_PATH"])
def test_half_of_set_env_is_not_enough(tmp_path: Path, variable: str) -> None:
    environ = {name: value for name, value in SET_ENV.items() if name != variable}
    finding = find(make_ascend_host(tmp_path, environ), "set_env.sh")
    assert finding.state == "problem"
    assert variable in finding.advice


def test_a_library_path_without_canns_libraries_is_told(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, SET_ENV | {"LD_LIBRARY_PATH": "/usr/lib:/opt/lib"})
    assert "libge_runner.so in LD_LIBRARY_PATH" in find(host, "set_env.sh").advice


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_OPP_PATH"])
@pytest.mark.parametrize("place", ["", "/not/there"])
def test_a_place_that_is_none_is_told(tmp_path: Path, variable: str, place: str) -> None:
    finding = find(make_ascend_host(tmp_path, SET_ENV | {variable: place}), "set_env.sh")
    assert (finding.state, f"missing: {variable}" in finding.advice) == ("problem", True)


@pytest.mark.parametrize("module", ["acl", "te"])
def test_a_python_that_does_not_find_canns_packages_is_told(tmp_path: Path, module: str) -> None:
    host = make_ascend_host(tmp_path, has_module=lambda name: name != module)
    assert f"Python's {module}" in find(host, "set_env.sh").advice


@pytest.mark.parametrize(
    ("info", "version", "state"),
    [
        ("version=8.3.RC1", "8.3.RC1", "ok"),
        ("version=8.2.RC1", "8.2.RC1", "hint"),
        ("version=8.3.RC2.alpha001", "8.3.RC2.alpha001", "hint"),
        ("version=8.5.0", "8.5.0", "hint"),
        ("nothing of the kind", "of unknown version", "hint"),
    ],
)
def test_the_version_of_cann_is_held_against_the_table(
    tmp_path: Path, info: str, version: str, state: str
) -> None:
    host = make_ascend_host(tmp_path)
    write_files(tmp_path, {f"{CANN}/aarch64-linux/ascend_toolkit_install.info": info})
    finding = find(host, "CANN")
    assert (finding.found, finding.state) == (f"{version}, {CANN}", state)
    assert "8.3.RC1" in finding.advice or state == "ok"


def test_cann_is_found_where_the_environment_says(tmp_path: Path) -> None:
    place = "/opt/cann-8.5.0"
    host = make_ascend_host(tmp_path, SET_ENV | {"ASCEND_HOME_PATH": place})
    write_files(tmp_path, {f"{place}/version.cfg": "runtime_running_version=[7.9.0.1:8.5.0]"})
    assert find(host, "CANN").found == f"8.5.0, {place}"


def test_a_card_without_cann_is_a_problem(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, {"PATH": "/usr/local/bin"})
    (tmp_path / CANN.lstrip("/")).rename(tmp_path / "away")
    assert (find(host, "CANN").state, find(host, "set_env.sh").state) == ("problem", "problem")


@pytest.mark.parametrize(
    ("version", "state"),
    [("25.3.rc1", "ok"), ("25.5.0", "ok"), ("25.2.0", "hint"), ("24.1.rc3.7", "hint")],
)
def test_an_older_driver_is_told(tmp_path: Path, version: str, state: str) -> None:
    host = make_ascend_host(tmp_path)
    write_files(tmp_path, {f"{DRIVER}/version.info": f"Version={version}\n"})
    finding = find(host, "driver (HDK)")
    assert (finding.found, finding.state) == (f"{version}, {DRIVER}", state)


def test_a_driver_elsewhere_is_found_by_its_installers_note(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    write_files(
        tmp_path,
        {
            "etc/ascend_install.info": "Driver_Install_Path_Param=/opt/Ascend\n",
            "opt/Ascend/driver/version.info": "Version=25.3.rc1\n",
            "opt/Ascend/driver/lib64/libascend_hal.so": "",
        },
    )
    assert find(host, "driver (HDK)").found == "25.3.rc1, /opt/Ascend/driver"


def test_a_machine_without_the_driver_is_told_to_install_it(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    library = f"{DRIVER}/lib64/driver/libascend_hal.so"
    remove(tmp_path, library, f"{DRIVER}/version.info", "dev/davinci0", "dev/davinci1")
    assert "install the driver (HDK 25.3.RC1)" in find(host, "driver (HDK)").advice
    assert states(host)["driver (HDK)"] == states(host)["card"] == "problem"


def test_a_container_is_told_what_to_be_started_with(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    write_files(tmp_path, {".dockerenv": ""})
    remove(tmp_path, "dev/davinci0", "dev/davinci1", f"{DRIVER}/lib64/driver/libascend_hal.so")
    remove(tmp_path, "usr/local/bin/npu-smi")
    assert "--device /dev/davinci0" in find(host, "card").advice
    assert f"-v {DRIVER}" in find(host, "driver (HDK)").advice
    assert "-v /usr/local/bin/npu-smi" in find(host, "npu-smi").advice
    assert states(host)["card"] == states(host)["driver (HDK)"] == "problem"


def test_a_driver_whose_version_is_not_mounted_is_a_hint(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    remove(tmp_path, f"{DRIVER}/version.info")
    assert states(host)["driver (HDK)"] == "hint"


def test_a_missing_manager_node_is_a_problem(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path)
    remove(tmp_path, "dev/hisi_hdc")
    finding = find(host, "card")
    assert (finding.state, finding.advice[:21]) == ("problem", "/dev/hisi_hdc missing")


def test_a_card_that_this_user_may_not_use_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_ascend_host(tmp_path)
    monkeypatch.setattr(Host, "can_use", lambda self, name: "davinci1" not in str(name))
    finding = find(host, "card")
    assert finding.state == "problem"
    assert finding.advice.startswith("This user may not use /dev/davinci1: run `usermod")


def test_a_300i_duo_is_told_what_it_can_do(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, npu_smi=ProgramOutput(NPU_SMI_DUO))
    finding = find(host, "chip 310P3")
    assert finding.state == "hint"
    assert "float16" in finding.advice
    assert "model_parallel 1, 2 or 4" in finding.advice
    # Its chips differ a little in memory.
    assert find(host, "chips").found == "2 x 310P3, at least 41.2 GB of 42.7 GB free"


def test_an_unhealthy_chip_is_named_with_a_way_around_it(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, npu_smi=ProgramOutput(NPU_SMI_A3))
    finding = find(host, "chip 5")
    assert (finding.found, finding.state) == ("Alarm", "hint")
    assert "npu-smi info -t health -i 2" in finding.advice
    assert "ASCEND_RT_VISIBLE_DEVICES=4" in finding.advice


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (ProgramOutput(problem="no answer in 15 s"), "no answer in 15 s"),
        (ProgramOutput("DrvMng failed. ret is -8020\nmore", "exit code 1"), "exit code 1: DrvMng"),
        (ProgramOutput("\x00garbage | 1 | 2\n" * 9), "lists no chip"),
        (ProgramOutput(""), "lists no chip"),
    ],
)
def test_npu_smi_that_says_nothing_useful_is_a_hint(
    tmp_path: Path, output: ProgramOutput, found: str
) -> None:
    finding = find(make_ascend_host(tmp_path, npu_smi=output), "npu-smi")
    assert finding.found.startswith(found)
    assert finding.state == "hint"


def test_npu_smi_is_started_by_the_path_where_it_is(tmp_path: Path) -> None:
    programs = Programs(npu=ProgramOutput(NPU_SMI_DUO))
    list(diagnose(make_ascend_host(tmp_path, SET_ENV | {"PATH": ""}, run=programs)))
    assert programs.commands == [(str(tmp_path / "usr/local/bin/npu-smi"), "info")]


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ("0", "ok"),
        ("0,1", "ok"),
        *((text, "problem") for text in ("2", "a", "0,", "", "1,0", "0, 1", "0,0")),
    ],
)
def test_visible_devices_must_be_there(tmp_path: Path, given: str, state: str) -> None:
    host = make_ascend_host(tmp_path, SET_ENV | {"ASCEND_RT_VISIBLE_DEVICES": given})
    assert states(host)["visible devices"] == state


def test_a_container_counts_its_devices_anew(tmp_path: Path) -> None:
    host = make_ascend_host(tmp_path, SET_ENV | {"ASCEND_RT_VISIBLE_DEVICES": "0"})
    remove(tmp_path, "dev/davinci0")
    assert states(host)["visible devices"] == "problem"
    write_files(tmp_path, {".dockerenv": ""})
    assert states(host)["visible devices"] == "ok"


def test_simulation_is_a_problem(tmp_path: Path) -> None:
    assert states(make_ascend_host(tmp_path, SET_ENV | {"MS_SIMULATION_LEVEL": "1"}))["simulation"]
