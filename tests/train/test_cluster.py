"""The cluster files of experiments/configs/cluster parse, and their training commands are valid."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from eca_hub.__main__ import main

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "configs" / "cluster"
FILES = sorted(path.name for path in CLUSTER.iterdir())
VARIABLES = {"FIRST": "node1", "IMAGENET": "/data/imagenet", "RUN": "/runs/resnet50", "SLURM_JOB_ID": "7"}


def words_of(name: str, folder: Path) -> list[str]:
    """Return the command that a file starts: from its shell script, or of its container."""
    if name.endswith(".yaml"):
        [container] = job()["spec"]["template"]["spec"]["containers"]
        [(config_map, source)] = re.findall(r"create configmap (\S+) --from-file=(\S+)", (CLUSTER / name).read_text())
        assert volumes()["/config"] == {"configMap": {"name": config_map}}
        mounted = f"/config/{Path(source).name}"
        return [word.replace(mounted, source) for word in container["command"] + container["args"]]
    for launcher in ("eca-hub", "torchrun", "srun", "scontrol"):
        program = folder / launcher
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {launcher} "$@"\n')
        program.chmod(0o755)
    environment = {**VARIABLES, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", CLUSTER / name], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def job() -> dict[str, Any]:
    [manifest] = [each for each in manifests() if each["kind"] == "Job"]
    return manifest


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))


def volumes() -> dict[str, Any]:
    """Return the source of what is mounted, by its folder in the container."""
    pod = job()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    sources = {volume.pop("name"): volume for volume in pod["volumes"]}
    return {mount["mountPath"]: sources[mount["name"]] for mount in container["volumeMounts"]}


def option(words: list[str], name: str) -> str:
    joined = " ".join(words).replace(f"{name}=", f"{name} ").split()
    return joined[joined.index(name) + 1]


@pytest.mark.parametrize("name", FILES)
def test_the_training_command_is_valid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(name, tmp_path)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*words[words.index("eca-hub") + 1 :], "--print_config"])
    assert ended.value.code == 0
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["resume"] is True
    assert read["run_dir"] == "/runs/resnet50"
    assert read["trainer"]["devices"] in (4, "4")
    assert read["trainer"]["strategy"] == "ddp"
    num_processes = int(read["trainer"]["devices"]) * int(read["trainer"]["num_nodes"])
    assert num_processes * read["data"]["init_args"]["batch_size"] == 256


@pytest.mark.parametrize("name", [name for name in FILES if name != "node.sh"])
def test_as_many_processes_are_started_as_the_trainer_expects(name: str, tmp_path: Path) -> None:
    words = words_of(name, tmp_path)
    trainer = (option(words, "--trainer.num_nodes"), option(words, "--trainer.devices"))
    if words[0] == "torchrun":
        assert (option(words, "--nnodes"), option(words, "--nproc_per_node")) == trainer
    else:
        text = (CLUSTER / name).read_text()
        assert f"#SBATCH --nodes={trainer[0]}\n" in text
        assert f"#SBATCH --ntasks-per-node={trainer[1]}\n" in text
        assert f"#SBATCH --gpus-per-node={trainer[1]}\n" in text


def test_the_options_of_torchrun_are_valid(tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    for name in ("torchrun.sh", "kubernetes.yaml"):
        args = get_args_parser().parse_args(words_of(name, tmp_path)[1:])
        assert args.no_python
        assert args.training_script == "eca-hub"
        assert args.training_script_args[0] == "fit"


def test_the_pods_of_the_job_find_each_other_and_get_their_gpus() -> None:
    service, manifest = manifests()
    pod = manifest["spec"]["template"]["spec"]
    name = manifest["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    [container] = pod["containers"]
    assert f"--rdzv_endpoint={name}-0.{pod['subdomain']}:29500" in container["args"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_container_reads_and_writes_only_what_is_mounted() -> None:
    [container] = job()["spec"]["template"]["spec"]["containers"]
    values = [word.split("=", 1)[1] for word in container["args"] if "=" in word]
    paths = [value for value in values if "/" in value]
    assert len(paths) == 3
    assert all("/" + path.split("/")[1] in volumes() for path in paths), paths


@pytest.mark.parametrize("name", FILES)
def test_every_file_names_its_command(name: str) -> None:
    assert f"experiments/configs/cluster/{name}" in (CLUSTER / name).read_text().split("# Command: ")[1].splitlines()[0]
