"""`course bench control` and `course bench lora`: what is measured, and what is printed of it."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from course import cli, controlnet, train
from course.adapt import control
from course.evaluation import steering
from course.pipeline import StableDiffusion
from course.tokenizer import Tokenizer
from tests.conftest import TINY


@pytest.fixture
def pipe() -> StableDiffusion:
    """A tiny pipeline that can read long captions."""
    words = Tokenizer.train(["a small red circle"], num_merges=10, length=120)
    return StableDiffusion(replace(TINY, text=replace(TINY.text, length=120)), words)


@pytest.fixture
def network(pipe):
    return controlnet.ControlNet.from_unet(pipe.unet, (8, 8, 16))


def test_rows_with_floor_and_ceiling(pipe, network):
    rows = steering.measure(pipe, network, "depth", 8, steps=1)
    assert [(r["pictures"], r["prompts"]) for r in rows] == [
        ("drawn by Scenes", None), ("rebuilt by the autoencoder", None), ("without", "say where"), ("with control", "say where"),
        ("without", "leave it open"), ("with control", "leave it open")]
    assert rows[0]["edge_f"] > 0.9 and rows[0]["all"] == 1.0 and all(set(steering.KEYS) <= set(r) for r in rows)
    # a new ControlNet is a row of zeros: it changes nothing
    assert {k: v for k, v in rows[2].items() if k != "pictures"} == {k: v for k, v in rows[3].items() if k != "pictures"}


def test_bench_control(pipe, network, tmp_path):
    pipe.save(tmp_path / "model")
    control.save(network, tmp_path / "net", "edges")
    words = ["bench", "control", str(tmp_path / "net"), "--model", str(tmp_path / "model"), "--count", "8", "--steps", "1"]
    run = CliRunner().invoke(cli.app, [*words, "--json"])
    assert run.exit_code == 0, run.output
    assert len(json.loads(run.output)["rows"]) == 6
    assert "silhouettes" in CliRunner().invoke(cli.app, words, env={"COLUMNS": "250"}).output


def test_bench_lora_runs_each_rank_once(tmp_path, monkeypatch):
    trained = []

    def run(recipe, out, engine, **how):
        trained.append((recipe.loss.rank, recipe.steps))
        metrics = {key: 0.5 for key in ("new_before", "new_after", "old_before", "old_after", "seconds")} | {
            "trained_parameters": 10, "optimizer_bytes": 80, "new_prompts": 4, "images_seen": 5, "commit": "x", "device": "cpu"}
        out.mkdir(parents=True)
        (out / "metrics.json").write_text(json.dumps(metrics))
        return metrics
    monkeypatch.setattr(train, "run", run)
    words = ["bench", "lora", "--ranks", "2,full", "--steps", "7", "--out", str(tmp_path / "ranks")]
    told = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).output)
    assert [row["rank"] for row in told] == ["2", "full"] and trained == [(2, 7), (None, 7)]
    said = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"}).output
    assert len(trained) == 2 and "50.0 %" in said                # nothing is trained twice
