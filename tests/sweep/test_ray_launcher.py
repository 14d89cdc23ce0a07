"""A sweep on a Ray cluster: two nodes on this machine, which share its folders."""

from pathlib import Path

import pytest

from eca_hub.__main__ import main
from eca_hub.sweep.results import read_table
from tests.ray_cluster import add_node

CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "digits" / "eca.yaml"

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_the_runs_of_a_sweep_are_trained_on_the_nodes_of_a_cluster(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="pip install 'eca-hub[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        add_node(cluster)
        (tmp_path / "sweep.yaml").write_text(
            f"configs: [{CONFIG}]\noptions: {{trainer.max_epochs: 1}}\ngrid: {{model.attention: [none, eca]}}"
        )
        out = tmp_path / "out"
        code = main(["sweep", "-c", str(tmp_path / "sweep.yaml"), "--out", str(out), "--ray", cluster.address])
        assert code == 0, [path.read_text() for path in out.glob("*.log")]
        assert [row["attention"] for row in read_table(out / "results.csv")] == ["none", "eca"]
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_an_address_without_a_cluster_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="pip install 'eca-hub[ray]'")
    (tmp_path / "sweep.yaml").write_text(f"configs: [{CONFIG}]\ngrid: {{seed_everything: [0]}}")
    options = ["--out", str(tmp_path / "out"), "--ray", "auto"]
    assert main(["sweep", "-c", str(tmp_path / "sweep.yaml"), *options]) == 2
    assert "No Ray cluster responds at 'auto'" in capsys.readouterr().err
