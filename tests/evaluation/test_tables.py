"""The comparison tables: rules by made-up rows, and the whole command at the quick scale."""

import json
import math
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from course import cli, unet
from course.adapt import low_rank
from course.data import Scenes
from course.errors import UsageError
from course.evaluation import agreement, errata, features, tables
from course.evaluation.tables import (
    ablations,
    adapters,
    audit,
    classes,
    compression,
    guidance,
    page,
    reach,
    resolution,
    steps,
    zoo,
)
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SCALES, SUPPORTED, Column, Table, Work, claimed, make
from course.training import recipes
from tests.evaluation import networks

CPU = SCALES["cpu"]


def test_all_at_the_quick_scale(tmp_path):
    words = ["tables", "all", "--scale", "quick", "--out", str(tmp_path), "--device", "cpu", "--json"]
    run = CliRunner().invoke(cli.app, words)
    assert run.exit_code == 0, run.output
    found = json.loads(run.output)
    assert [t["table"] for t in found] == list(tables.TABLES) and {t["verdict"] for t in found} == {INCONCLUSIVE}
    for t in found:
        assert t["rows"] and t["seed"] == 0 and t["commit"] and t["device"] and t["falsified_if"]
        assert (tmp_path / "quick" / t["table"] / "figure.png").stat().st_size > 5_000
        assert (tmp_path / "quick" / t["table"] / "table.tex").read_text().startswith("\\begin{tabular}")
    html = (tmp_path / "quick" / "report.html").read_text()
    assert html.count("<section") == len(found) + 1 and "Not run at this scale" not in html
    assert "Where the article errs" in html and "arXiv" not in html.split("<nav")[0]
    rows = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("rows/*.json")}
    again = json.loads(CliRunner().invoke(cli.app, words).output)
    assert [t["rows"] for t in again] == [t["rows"] for t in found]             # nothing is computed twice
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("rows/*.json")} == rows


@pytest.mark.slow
@pytest.mark.parametrize("name, given", [("F", ("inception-weights", "clip")), ("A", ("lpips",))])
def test_with_released_networks(name, given, tmp_path):
    """The whole command with files of the released formats: each figure under its own name, with the file's hash."""
    made = {"inception-weights": (networks.inception, tmp_path / "inception.pth"), "clip": (networks.clip, tmp_path / "clip"),
            "lpips": (networks.trunk, tmp_path / "alexnet.pth")}
    words = ["tables", name, "--scale", "quick", "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    for option in given:
        write, path = made[option]
        write(path)
        words += [f"--{option}", str(path)]
    run = CliRunner().invoke(cli.app, words)
    assert run.exit_code == 0, run.output
    found, = json.loads(run.stdout)                            # transformers talks to stderr
    folder = tmp_path / "out" / f"quick-{'-'.join(option.removesuffix('-weights') for option in given)}"
    head = (folder / name / "table.md").read_text().splitlines()[0]
    if name == "F":
        assert found["networks"] == {"FID": features.fid(tmp_path / "inception.pth").sha256,
                                     "CLIP": agreement.released(tmp_path / "clip").sha256}
        assert all(name in head for name in ("FID", "KID", "CLIP score")) and "course" not in head
        data, clip = Scenes(64, "test", objects=(1, 3), textures=("plain",), degraded=0.0), agreement.released(tmp_path / "clip")
        images, said = data.images(range(24)), data.captions(range(24), full=True)
        for row, shown in ((0, images), (2, images.roll(1, 0))):                    # a random CLIP's cosines lie about zero
            assert found["rows"][row]["clip"] == pytest.approx(clip.of(shown, said).mean().item(), abs=1e-6)
        assert found["rows"][2]["clip"] > 0
        assert all(math.isfinite(row[key]) for row in found["rows"] for key in ("fd", "kid"))
    else:
        assert set(found["networks"]) == {"LPIPS", "FD-random"}
        assert found["networks"]["LPIPS"] == features.lpips(tmp_path / "alexnet.pth").sha256
        assert "LPIPS" in head and "PSIM" not in head and "FD-course" in head
        assert all(row["psim"] > 0 for row in found["rows"][1:])
    html = (folder / "report.html").read_text()
    assert all(f"{network}: network {sha[:12]}" in html for network, sha in found["networks"].items())


def test_the_report_tells_of_earlier_calls_and_of_what_is_missing(tmp_path, monkeypatch):
    words = ["--scale", "quick", "--out", str(tmp_path), "--device", "cpu"]
    nothing = CliRunner().invoke(cli.app, ["tables", "report", *words])
    assert isinstance(nothing.exception, UsageError) and "no table in" in str(nothing.exception)
    assert CliRunner().invoke(cli.app, ["tables", "D", *words]).exit_code == 0
    page_, made = tmp_path / "quick" / "report.html", tmp_path / "quick" / "D" / "table.json"
    result = json.loads(made.read_text()) | {"verdict": CONTRADICTED, "why": "made up <for this test>", "seconds": 600}
    made.write_text(json.dumps(result))
    assert CliRunner().invoke(cli.app, ["tables", "report", *words]).exit_code == 0
    html = page_.read_text()
    top = html.split("<section")[0]
    assert "Does not hold here" in top and "made up &lt;for this test&gt;" in top and "Holds here" not in top
    assert "Not run at this scale: A, B, C, E, F, G, H, I, J" in top and "10 minutes" in html
    assert html.count("✓ <code>") == sum(e.holds() is True for e in errata.entries()) > 20 and "✗ <code>" not in html
    monkeypatch.setattr("shutil.which", lambda name: None)
    without = CliRunner().invoke(cli.app, ["tables", "report", *words, "--pdf"])
    assert isinstance(without.exception, UsageError) and "apt install chromium" in str(without.exception)


def test_unknown_tables_and_scales():
    with pytest.raises(UsageError, match="no table Q; expected all, or some of A, B, C, D, E, F, G, H, I, J"):
        tables.chosen("c,q")
    run = CliRunner().invoke(cli.app, ["tables", "C", "--scale", "huge"])
    assert isinstance(run.exception, UsageError) and "quick, cpu, gpu" in str(run.exception)


def test_a_call_that_computes_nothing_keeps_what_was_said_of_the_run(tmp_path, monkeypatch):
    table = Table("Z", "title", "claim", "never", (), lambda work: [work.once(key, lambda: {"x": 1}) for key in ("a", "b")],
                  lambda rows, scale: (SUPPORTED, "so it is"), lambda path, rows: path.write_bytes(b"picture"))
    first = make(table, Work(tmp_path, CPU))
    monkeypatch.setattr("course.evaluation.tables.table.commit", lambda: "later")
    assert make(table, Work(tmp_path, CPU)) == first
    (tmp_path / "rows" / "b.json").unlink()
    assert make(table, Work(tmp_path, CPU))["commit"] == "later"


def test_a_row_is_kept_and_read_again(tmp_path):
    work, calls = Work(tmp_path, CPU), []
    for _ in range(2):
        assert work.once("a", lambda: calls.append(1) or {"x": (1, 2)}) == {"x": [1, 2]}
    assert len(calls) == 1


def test_two_processes_share_the_rows(tmp_path):
    """A row that another process has begun is left to it, and waited for when all others are there."""
    hold = ("import sys, time; from pathlib import Path; from course.evaluation.tables.table import claimed\n"
            "with claimed(Path(sys.argv[1]), False) as mine:\n"
            "    print(mine, flush=True); sys.stdin.readline(); Path(sys.argv[2]).write_text('{\"x\": 7}')")
    (tmp_path / "rows").mkdir()
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "rows/a.lock"), str(tmp_path / "rows/a.json")],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    with claimed(tmp_path / "rows" / "a.lock", wait=False) as mine:
        assert not mine
    done = []

    def b():
        done.append("b")
        other.communicate("go on\n")                           # the other one ends only after this row
        return {"x": 2}
    assert Work(tmp_path, CPU).share({"a": lambda: done.append("a") or {"x": 1}, "b": b}) == [{"x": 7}, {"x": 2}]
    assert done == ["b"]


def swept(fds, rights=None, width=0.0):
    rights = rights or [0.1, 0.5, 0.9, 0.9]
    return [{"guidance": w, "fd": fd, "kid_low": fd - width, "kid_high": fd + width, "right_low": r - 0.02,
             "right_high": r + 0.02} for w, fd, r in zip((0.0, 1.0, 2.0, 8.0), fds, rights, strict=True)]


@pytest.mark.parametrize("rows, verdict", [
    (swept([9, 5, 3, 7]), SUPPORTED), (swept([9, 5, 3, 1]), CONTRADICTED), (swept([1, 5, 7, 9]), CONTRADICTED),
    (swept([9, 5, 3, 7], width=3), INCONCLUSIVE), (swept([9, 5, 3, 7], rights=[0.5] * 4), CONTRADICTED)])
def test_the_rule_of_guidance(rows, verdict):
    assert guidance.rule([{"guidance": "the pictures themselves", "fd": 0.0}, *rows], CPU)[0] == verdict


def point(arm, seconds, fd, width=0.1):
    return {"arm": arm, "seconds": seconds, "fd": fd, "kid_low": fd - width, "kid_high": fd + width, "steps": 5,
            "sampler": "ddim"}


@pytest.mark.parametrize("rows, verdict", [
    ([point("latent", 1, 2), point("pixel", 2, 5)], SUPPORTED),
    ([point("latent", 1, 2), point("pixel", 0.5, 5)], CONTRADICTED),            # nothing is as fast
    ([point("latent", 1, 6), point("pixel", 2, 5)], CONTRADICTED),              # nothing is as good
    ([point("latent", 1, 4.9), point("pixel", 2, 5)], INCONCLUSIVE)])
def test_the_rule_of_steps(rows, verdict):
    assert steps.rule(rows, CPU)[0] == verdict


@pytest.mark.parametrize("ratios, verdict", [([8, 10, 12], SUPPORTED), ([8, 0.9, 12], CONTRADICTED),
                                             ([12, 10, 8], CONTRADICTED)])
def test_the_rule_of_resolution(ratios, verdict):
    rows = [{"side": s, "picture_ratio": r} for s, r in zip((64, 128, 256), ratios, strict=True)]
    assert resolution.rule(rows, CPU)[0] == verdict


def test_resolution_counts_what_it_says():
    small, large = resolution.counted(64), resolution.counted(128)
    assert large["pixel_parameters"] == small["pixel_parameters"]
    assert large["decoder"] == pytest.approx(4 * small["decoder"], rel=1e-3)
    assert large["pixel_pass"] > 3.9 * small["pixel_pass"]


def test_resolution_says_how_it_knows_of_memory(monkeypatch):
    """Measured where there is twice the room, counted elsewhere; the counted figure is kept beside the measured one."""
    asked = []
    monkeypatch.setattr(resolution.cost, "peak_mb", lambda *given: asked.append(given) or 100.0)
    measured = resolution.peaks(64, "cpu", measured=True)
    assert measured["peak_is"] == "measured, RSS" and measured["pixel_peak"] == 100 and measured["peak_ratio"] == 1
    assert asked == [("demo-pixel", 1, "cpu", 64), ("demo-latent", 1, "cpu", 64)]
    monkeypatch.setattr(resolution, "free", lambda device: 2**20)
    counted = resolution.peaks(64, "cpu", measured=True)
    assert counted["peak_is"] == "counted" and counted["pixel_peak"] == measured["pixel_counted"] > 50 and len(asked) == 2
    large = resolution.peaks(256, "cpu", measured=False)
    assert large["peak_ratio"] > counted["peak_ratio"] > 1


def test_a_part_stands_in_every_output_and_may_be_missing(tmp_path):
    table = resolution.TABLE
    row = {"what": "weights & all", "gb": 2.5, "cap": 8.0, "how": "counted", "verdict": SUPPORTED}
    result = {"rows": [], "verdict": SUPPORTED, "why": "so", "networks": {}, "parts": {"consumer": [row], "article": []}}
    assert "| weights & all | 2.50 | 8.0 | counted | supported |" in page.markdown(table, result)
    tex = page.latex(table, result)
    assert "weights \\& all & 2.50 & 8.0 & counted & supported" in tex and tex.count("\\begin{tabular}") == 4
    assert "consumer" not in page.markdown(table, {k: v for k, v in result.items() if k != "parts"})


@pytest.mark.parametrize("table", [t for t in tables.TABLES.values() if t.published], ids=lambda t: t.name)
def test_published_figures_are_a_table_of_their_own(table):
    """In Markdown and LaTeX as in the report: each of the published rows with its source, none of them among the course's."""
    result = {"rows": [], "verdict": SUPPORTED, "why": "so", "networks": {}}
    name, columns = table.published
    rows = [r for r in errata.published()["tables"][name]["rows"] if {c.key for c in columns} & {
        key for key, value in r.items() if not isinstance(value, str)}]         # some have their figures in other columns
    own, _, theirs = page.markdown(table, result).partition("Published: ")
    assert own.count("\n|") == 1 and "source" not in own                        # heads, a line, no rows
    assert theirs.splitlines()[2] == "| " + " | ".join([c.head for c in columns] + ["source"]) + " |"
    lines = theirs.strip().splitlines()[4:]
    assert len(lines) == len(rows) and all(line.endswith(f"| {row['source']} |") for line, row in zip(lines, rows, strict=True))
    first, second = page.latex(table, result).split("% Published: ")
    assert second.count(r"\\") == len(rows) + 1 and first.count(r"\\") == 1 and second.count(r"\begin{tabular}") == 1
    assert all(row["source"] in second for row in rows)


def arm(kid, seconds, width=0.5, **more):
    return {"kid": kid, "kid_low": kid - width, "kid_high": kid + width, "seconds": seconds, "images": 10 * seconds,
            "flops": 1e6 * seconds} | more


def race(crossing, faster, first=60.0, wide=0.5):
    """Pixels end at KID 10 after 2,400 s; a latent arm falls from 20, and is at 5 after `crossing` seconds."""
    ends = [arm(10, 2400, arm="pixel", seed=0), arm(11, 2400, arm="pixel", seed=1)]
    curve = [arm(20, crossing / 2), arm(5, crossing, wide), arm(2, 2 * crossing, wide)]
    latent = arm(2, 2 * crossing, arm="latent", seed=0, first_seconds=first, first_flops=1e6 * first, curve=curve)
    latent |= reach.reached(curve, ends)
    costs = [{"arm": "cost", "side": side, "ratio_best": faster} | {f"{a}_best": x for a, x in (
        ("pixel", faster), ("latent", 1.0), ("decode", 0.0))} for side in (64, 128)]
    return reach.finished([*ends, latent, *costs, {"arm": "few", "pixel_steps": 10, "latent_steps": 5}])


def test_when_a_latent_arm_has_reached_the_mark():
    rows = race(crossing=60, faster=30)
    latent, few = rows[2], rows[-1]
    assert latent["reached"] == latent["about"] == 60 and latent["ratio_seconds"] == latent["ratio_flops"] == 40
    assert latent["ratio_with"] == latent["ratio_flops_with"] == 20 and latent["ceiling"] == 40
    assert few["ratio_best"] == 60                             # twice as many steps of a step that costs 30 times as much
    unsure = race(crossing=60, faster=30, wide=6.0)[2]         # 5 is below 10, but 11 is not below 9.5
    assert unsure["about"] == 60 and unsure["reached"] == 120 and unsure["ratio_seconds"] == 20
    never = reach.reached([arm(12, 60)], [arm(10, 2400)])
    assert never["reached"] is None and never["ratio_seconds"] is None and never["about"] is None


@pytest.mark.parametrize("rows, verdict", [
    (race(60, 30), SUPPORTED), (race(60, 10), CONTRADICTED), (race(600, 30), CONTRADICTED),
    (race(110, 30, wide=6.0), INCONCLUSIVE),                   # 21.8 times at best, 10.9 for sure
    (race(60, 30, wide=100.0), INCONCLUSIVE)])                 # never for sure
def test_the_rule_of_compute(rows, verdict):
    assert reach.rule(rows, CPU)[0] == verdict


def menagerie(psnrs, noise=0.1):
    """psnrs: {(f, kind, channels): dB}; the same pictures in each, easier and harder ones."""
    own = [5.0 * (i % 7) for i in range(50)]
    return [{"f": f, "kind": kind, "channels": c, "psnr_each": [v + x + noise * ((i * (f + c)) % 5) for i, x in enumerate(own)]}
            for (f, kind, c), v in psnrs.items()]


GOOD = {(f, kind, 4): 40 - 3 * i for kind in ("KL", "VQ") for i, f in enumerate(zoo.SHAPES)} | {
    (8, "KL", 16): 40, (16, "KL", 16): 36}


@pytest.mark.parametrize("changed, noise, verdict", [
    ({}, 0.1, SUPPORTED),                                      # pictures differ by 30 dB, but each by 3 between autoencoders
    ({(8, "VQ", 4): 38}, 0.1, CONTRADICTED), ({(16, "KL", 16): 30}, 0.1, CONTRADICTED), ({}, 40.0, INCONCLUSIVE)])
def test_the_rule_of_autoencoders(changed, noise, verdict):
    assert zoo.rule(menagerie(GOOD | changed, noise), CPU)[0] == verdict


def test_the_autoencoders_shrink_as_they_say():
    assert all(zoo.config(f, kind, c).factor == f for f, kind, c in zoo.PLAN)


def ladder(kids, width=0.1):
    return [{"f": f, "kid": k, "kid_low": k - width, "kid_high": k + width} for f, k in zip((1, 2, 4, 8, 16), kids, strict=True)]


@pytest.mark.parametrize("rows, verdict", [
    (ladder([9, 5, 3, 2, 4]), SUPPORTED), (ladder([1, 5, 3, 2, 4]), CONTRADICTED), (ladder([9, 5, 3, 2, 1]), CONTRADICTED),
    (ladder([9, 5, 3, 2, 2.1]), INCONCLUSIVE)])
def test_the_rule_of_compression(rows, verdict):
    assert compression.rule([{"f": "the pictures themselves"}, *rows], CPU)[0] == verdict


def test_the_denoisers_of_all_f_are_of_one_size():
    with torch.device("meta"):
        sizes = {f: sum(p.numel() for p in unet.UNet(compression.config(f).unet).parameters()) for f in compression.SHAPES}
    assert max(sizes.values()) < 1.05 * min(sizes.values())
    assert all(compression.config(f).vae.factor == f for f in compression.SHAPES if f > 1)


def guided(ends):
    rows = [{"guidance": "the pictures themselves"}]
    for seed, (precision, recall, score) in enumerate(ends):
        rows += [{"guidance": 1.0, "seed": seed, "precision": 0.5, "recall": 0.5, "is": 20},
                 {"guidance": 8.0, "seed": seed, "precision": precision, "recall": recall, "is": score}]
    return rows


@pytest.mark.parametrize("ends, verdict", [
    ([(0.8, 0.3, 30), (0.7, 0.4, 25)], SUPPORTED), ([(0.8, 0.6, 30), (0.7, 0.5, 25)], CONTRADICTED),
    ([(0.4, 0.3, 30), (0.5, 0.4, 25)], CONTRADICTED), ([(0.8, 0.3, 30), (0.7, 0.6, 25)], INCONCLUSIVE)])
def test_the_rule_of_classes(ends, verdict):
    assert classes.rule(guided(ends), CPU)[0] == verdict


def test_a_class_is_a_word():
    tokens = classes.ClassNames()
    assert tokens("")[0].tolist() == [48] and tokens(["red circle", "black cross"]).tolist() == [[0], [47]]
    assert classes.ClassEmbedding(48, 8)(tokens(["red circle", ""])).shape == (2, 1, 8)


def changed(base, **others):
    rows = [{"change": "base", "seed": i, "kid": k, "kid_low": k - 0.1, "kid_high": k + 0.1} for i, k in enumerate(base)]
    rows += [{"change": {"scale": ablations.CHANGES[0].name}.get(name, name), "seed": 0, "kid": k} for name, k in others.items()]
    return [{"change": "the pictures themselves", "kid": 0.0}, *rows]


@pytest.mark.parametrize("rows, verdict", [
    (changed([2, 2.5, 3], scale=4), SUPPORTED), (changed([2, 2.5, 3], scale=2), CONTRADICTED),
    (changed([2, 2.5, 3], scale=3), INCONCLUSIVE)])
def test_the_rule_of_ablations(rows, verdict):
    assert ablations.rule(rows, CPU)[0] == verdict


def test_a_penalty_averaged_is_stronger_than_summed():
    """One picture: |x - x^|^2 summed + w KL summed, against both averaged over their own values."""
    error, kl, w = 100.0, 7.0, 1e-3
    averaged = error / (3 * 64 * 64) + w * kl / (4 * 8 * 8)
    assert averaged * 3 * 64 * 64 == pytest.approx(error + w * ablations.VALUES * kl) and ablations.VALUES == 48


def begun(zero_moves=0.0, gaussian=0.0, width=0.02):
    rows = [{"adapter": "none", "first_right": 0.9, "first_low": 0.88, "first_high": 0.92}]
    for kind in ("ControlNet", "LoRA"):
        rows += [{"adapter": kind, "start": start, "moved": moved, "first_right": right, "first_high": right + width,
                  "end_right": 1} for start, moved, right in (("zero", zero_moves, 0.9), ("gaussian", 1.0, gaussian))]
    return rows


@pytest.mark.parametrize("rows, verdict", [
    (begun(), SUPPORTED), (begun(zero_moves=0.1), CONTRADICTED), (begun(gaussian=0.95), CONTRADICTED),
    (begun(gaussian=0.87), INCONCLUSIVE)])
def test_the_rule_of_adapters(rows, verdict):
    assert adapters.rule(rows, CPU)[0] == verdict


def test_a_lora_without_replay_has_no_say_in_the_verdict():
    alone = {"adapter": adapters.ALONE, "start": "zero", "moved": 1.0, "first_right": 0.1, "first_high": 0.2, "end_right": 0.3}
    verdict, why = adapters.rule([*begun(), alone], CPU)
    assert verdict == SUPPORTED and why.endswith("LoRA without replay 30 %")


def test_old_pictures_stand_among_the_new_ones(tmp_path):
    trial = adapters.Trial(Work(tmp_path, SCALES["quick"]))
    recipe = recipes.find("lora", "heart")
    found, _, ids = trial.lesson(recipe)
    alone, _, without = trial.lesson(recipes.find("lora", "heart", ["loss.replay=0"]))
    assert len(without) == len(alone.images) == 32 and len(ids) == 32 + 14              # 14 / 46 is 30 %
    heart = [bool((row == trial.pipe.tokenizer("heart")[0, 1]).any()) for row in ids[:, 0]]
    old = low_rank.familiar(recipe, 32, 0, 8)
    assert len(old.images) == 14 and not any("heart" in said for ways in old.captions for said in ways)
    assert all("heart" in said for ways in found.captions for said in ways[-ids.shape[1]:])
    assert heart == [True] * 32 + [False] * 14


def test_a_gaussian_start_has_the_usual_size():
    layer = torch.nn.Linear(400, 300)
    adapters.fill([layer])
    assert layer.weight.std().item() == pytest.approx(1 / 20, rel=0.02)


def kinds(order, other=None):
    rows = []
    for name, fd in order.items():
        rows.append({"pictures": name, "fd, course, 256": fd, "fd, course, 1024": fd / 2,
                     "fd, untrained, 1024": (other or order)[name], "fd, course, 64": -fd})
    return rows


def test_the_rule_of_the_audit():
    assert audit.rule(kinds({"a": 1, "b": 2, "c": 3}), CPU)[0] == SUPPORTED     # below 256 pictures it may be otherwise
    verdict, why = audit.rule(kinds({"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 1, "c": 3}), CPU)
    assert verdict == CONTRADICTED and '"untrained" ranks otherwise' in why
    few = [{k: v for k, v in row.items() if "1024" not in k} for row in kinds({"a": 1, "b": 2})]
    assert audit.rule(few, CPU)[0] == INCONCLUSIVE


def test_how_figures_are_written():
    assert Column("x", "x", "%").say(0.5) == "50.0 %" and Column("x", "x", ",d").say(12288) == "12,288"
    assert Column("x", "x", ".2f").say(None) == Column("x", "x").say(float("nan")) == "–"
    assert Column("x", "x").say("ddim") == "ddim"
    result = {"rows": [{"guidance": 1.5, "right": 0.5, "fd": 1.0}], "verdict": SUPPORTED, "why": "so", "networks": {}}
    assert "50.0 \\%" in page.latex(guidance.TABLE, result)
    assert page.markdown(guidance.TABLE, result).startswith("| guidance scale | FD-course | KID-course |")
    released = result | {"networks": {"FID": "1", "CLIP": "2"}}                 # of other networks: never under the course's name
    assert page.markdown(guidance.TABLE, released).startswith("| guidance scale | FID | KID |")
    assert "CLIP score" in page.latex(guidance.TABLE, released) and "course" not in page.latex(guidance.TABLE, released)
