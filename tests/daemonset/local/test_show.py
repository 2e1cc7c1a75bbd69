import dataclasses
import json
from pathlib import Path

import pytest

from daemonset.agent.status import AgentStatus, PodState, PodStatus, write_status
from daemonset.local.run_directory import Description, Place, RunDirectory
from daemonset.local.shared_files import FindingsFile, agent_folder
from daemonset.local.show import pod_in_words, show_status, ztunnel_in_words

POD = PodStatus("u", "web", "shop", PodState.ENROLLED, "its namespace wants it")


def state(state: PodState, reason: str, repairs: int = 0) -> PodStatus:
    return dataclasses.replace(POD, state=state, reason=reason, repairs=repairs)


def test_what_is_known_of_a_pod_in_words() -> None:
    assert pod_in_words(None) == "-"
    assert pod_in_words(POD) == "in"
    assert pod_in_words(state(PodState.ENROLLED, "", 2)) == "in (capture repaired 2 times)"
    assert pod_in_words(state(PodState.NOT_IN_MESH, "nobody asks")) == "out: nobody asks"
    assert pod_in_words(state(PodState.PENDING, "no ztunnel")) == "pending: no ztunnel"


def test_what_is_known_of_a_nodes_ztunnel_in_words() -> None:
    assert ztunnel_in_words(None) == "-"
    assert ztunnel_in_words(AgentStatus(0, False, "", ())) == "not connected to the agent"
    assert ztunnel_in_words(AgentStatus(1, False, "", ())) == "is being told its pods"
    assert ztunnel_in_words(AgentStatus(1, True, "", ())) == "knows its pods"


def test_status_says_who_is_in_the_mesh_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path))
    run = RunDirectory.create("m")
    place = Place(net=1, mnt=1, uts=1)
    run.describe(
        Description(
            "m",
            1,
            "/folder",
            nodes={"n": place},
            pods={"shop/web": dataclasses.replace(place, node="n", addresses=["10.0.0.2"])},
            processes={"ztunnel on n": "running, pid 7"},
        )
    )
    show_status("m")
    before = capsys.readouterr().out
    assert "WRONG" not in before
    run.folder("nodes", "n")
    write_status(AgentStatus(1, True, "", (POD,)), agent_folder(run.path, "n"))
    FindingsFile(run.path).write(["a.yaml:3: error: everything"])
    show_status("m")
    text = capsys.readouterr().out
    assert "shop/web   n      10.0.0.2    in     no process" in text
    assert "n                  knows its pods" in text
    assert text.rstrip().endswith("WHAT IS WRONG WITH THE FOLDER\na.yaml:3: error: everything")
    run.remove()


def test_findings_are_written_when_they_change(tmp_path: Path) -> None:
    file = FindingsFile(tmp_path)
    assert file.read() == []
    file.write(["one"])
    (path,) = tmp_path.glob("*.json")
    first = path.stat().st_mtime_ns, path.stat().st_ino
    file.write(["one"])
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == first
    file.write([])
    assert json.loads(path.read_text()) == []
