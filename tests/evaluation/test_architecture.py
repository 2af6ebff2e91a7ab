"""Drawings of a model: what is on them is what a run showed, and a run shows what the model is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from course import layers, parts, presets, unet
from course.errors import CheckpointError, UsageError
from course.evaluation import architecture, blueprint, drawings
from course.evaluation.svg import WIDTH, shape, short
from tests.conftest import TINY

GALLERY = Path(__file__).resolve().parents[2] / "docs/gallery"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def records() -> dict:
    """Models of every kind: four levels and two, several transformers a block, two text encoders, pixels, a codebook."""
    names = ("sd15", "scenes64-xl", "scenes64", "scenes64-pixel", "demo-vq")
    return {name: architecture.record(name) for name in names}


def observed(config) -> architecture.Record:
    return architecture.observe("tiny", config, architecture.built(config), "meta")


def drawn(record, what="unet") -> ElementTree.Element:
    return ElementTree.fromstring(drawings.draw(record, what))


def words(root) -> list[str]:
    return [element.text for element in root.iter(f"{SVG}text")]


def bars(root) -> dict[str, dict[str, float]]:
    """Name of a block -> x, y, width and height of its bar."""
    return {bar.find(f"{SVG}title").text.split(":")[0]: {key: float(bar.get(key)) for key in ("x", "y", "width", "height")}
            for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None}


# ---- what is recorded

def test_the_sums_are_those_of_the_released_models(records):
    assert records["sd15"].networks == {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}


@pytest.mark.slow
def test_sdxl():
    record = architecture.record("sdxl")
    assert record.networks == {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
                               "vae": 83_653_863}
    assert record.tensors["context"] == (77, 2048) and record.tensors["pooled"] == (1280,)
    assert "32 × 32 × 1280" in words(drawn(record)) and "(B, 77, 2048)" in words(drawn(record, "pipeline"))


@pytest.mark.parametrize("name", ["sd15", "scenes64-xl", "scenes64", "scenes64-pixel", "demo-vq"])
def test_every_parameter_is_in_one_block(records, name):
    record = records[name]
    assert sum(block.parameters for block in record.unet) == record.networks["unet"]
    assert sum(block.parameters for block in record.vae) == record.networks.get("vae", 0)
    assert len({block.name for block in record.unet}) == len(record.unet)


def test_shapes_are_those_of_the_model(records):
    sd15 = records["sd15"]
    assert sd15.tensors == {"ids": (77,), "context": (77, 768), "noise": (4, 64, 64), "answer": (4, 64, 64),
                            "picture": (3, 512, 512)}
    block = next(b for b in sd15.unet if b.name == "up_blocks.2.resnets.2")
    assert (block.kind, block.input, block.output, block.reads) == ("ResBlock", (960, 32, 32), (640, 32, 32), ("time",))
    assert records["scenes64-xl"].tensors["context"] == (16, 224) and records["scenes64-xl"].tensors["pooled"] == (128,)


@pytest.mark.parametrize("name", ["sd15", "scenes64-xl", "scenes64", "scenes64-pixel"])
def test_skips_join_maps_of_one_size_last_made_first_used(records, name):
    record, at = records[name], {b.name: i for i, b in enumerate(records[name].unet)}
    assert len(record.skips) == sum(b.name.startswith("up_blocks") and ".resnets." in b.name for b in record.unet)
    for source, target in record.skips:
        made, used, below = record.unet[at[source]], record.unet[at[target]], record.unet[at[target] - 1]
        assert made.output[1:] == used.input[1:] == below.output[1:]
        assert used.input[0] == made.output[0] + below.output[0]
    config = presets.UNETS["demo-pixel" if name == "scenes64-pixel" else name]
    assert [record.unet[at[source]].output[0] for source, _ in record.skips] == unet.skip_channels(config)[::-1]


def test_who_is_told_what(records):
    with torch.device("meta"):
        modules = dict(unet.UNet(presets.UNETS["scenes64-xl"]).named_modules())
    for block in records["scenes64-xl"].unet:
        inside = [name for name, _ in modules[block.name].named_modules()]
        assert ("text" in block.reads) == any(name.endswith("attn2") for name in inside), block
        assert ("time" in block.reads) == ("time_emb_proj" in inside), block


def test_a_model_that_comes_with_the_course_is_run_with_its_weights(records):
    assert records["scenes64"].weights and not records["sd15"].weights
    assert records["scenes64"].networks == {"unet": 3_875_720, "text_encoder": 730_240, "vae": 2_540_248}


def test_nothing_is_left_behind(pipe):
    before = torch.random.get_rng_state()
    architecture.observe("tiny", pipe.config, pipe.modules(), "cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module._forward_hooks for net in pipe.modules().values() for module in net.modules())


# ---- what is drawn

@pytest.mark.parametrize("what", drawings.DRAWINGS)
@pytest.mark.parametrize("name", ["sd15", "scenes64-xl", "scenes64", "demo-vq"])
def test_it_is_valid_and_nothing_leaves_the_page(records, name, what):
    root = drawn(records[name], what)
    height = float(root.get("viewBox").split()[3])
    assert root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
    for element in root.iter(f"{SVG}text"):
        wide = len(element.text) * (17 if element.get("class") == "title" else 10.2)
        left = float(element.get("x")) - {"middle": wide / 2, "end": wide}.get(element.get("text-anchor"), 0)
        assert 0 < left and left + wide < WIDTH and 20 < float(element.get("y")) < height - 8, element.text
    for element in root.iter(f"{SVG}rect"):
        assert float(element.get("y", 0)) + float(element.get("height")) <= height
    sizes = [int(size) for size in re.findall(r"font-size:(\d+)px", root.find(f"{SVG}style").text)]
    assert sizes and min(sizes) >= 20, "what is smaller cannot be read on a phone"


@pytest.mark.parametrize("name", ["sd15", "scenes64-xl", "scenes64", "scenes64-pixel"])
def test_the_unet_says_what_was_recorded(records, name):
    record = records[name]
    root, maps = drawn(record), [block for block in record.unet if len(block.output) == 3]
    tips = [element.text for element in root.findall(f"{SVG}rect/{SVG}title")]
    assert sorted(tips) == sorted(map(blueprint.said, maps))
    said = words(root)
    assert f"{record.networks['unet']:,} parameters" in said and shape(record.tensors["noise"]) in said
    for kind in {block.kind for block in maps}:
        counts = [block.parameters for block in maps if block.kind == kind]
        assert f"{len(counts)} {kind}, {short(sum(counts))}" in said
    assert any(shape(record.tensors["context"]) in text for text in said)
    for side in {block.output[1] for block in maps}:
        assert any(text.startswith(f"{side} × {side} × ") for text in said)


@pytest.mark.parametrize("name", ["sd15", "scenes64"])
def test_bars_are_as_wide_as_channels_and_as_tall_as_maps(records, name):
    placed, blocks = bars(drawn(records[name])), {b.name: b for b in records[name].unet}
    (a, first), *_ = placed.items()
    for b, bar in placed.items():
        if bar["width"] > 12 and first["width"] > 12:
            assert bar["width"] / first["width"] == pytest.approx(blocks[b].output[0] / blocks[a].output[0], rel=0.02)
        if bar["height"] > 5:
            assert bar["height"] / first["height"] == pytest.approx(blocks[b].output[1] / blocks[a].output[1], rel=0.03)


@pytest.mark.parametrize("name", ["sd15", "scenes64-xl", "scenes64", "scenes64-pixel"])
def test_skips_are_drawn_from_bar_to_bar(records, name):
    root = drawn(records[name])
    placed = bars(root)
    lines = {float(y): (float(x), float(end)) for x, y, end in (
        re.fullmatch(r"M([\d.]+) ([\d.]+) H([\d.]+)", path.get("d")).groups()
        for path in root.iter(f"{SVG}path") if "skip" in path.get("class").split())}
    assert len(lines) == len(records[name].skips)
    for source, target in records[name].skips:
        left, right = placed[source], placed[target]
        y = left["y"] + left["height"] / 2
        assert y == pytest.approx(right["y"] + right["height"] / 2, abs=0.2), "a skip is a straight line"
        begin, end = lines[min(lines, key=lambda at: abs(at - y))]
        assert left["x"] + left["width"] <= begin < end <= right["x"]


def test_bars_do_not_overlap(records):
    for record in records.values():
        placed = list(bars(drawn(record)).values())
        for i, a in enumerate(placed):
            for b in placed[i + 1:]:
                beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
                assert beside or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]


def test_the_pipeline_says_what_was_recorded(records):
    for name in ("sd15", "scenes64-xl", "scenes64"):
        record, said = records[name], words(drawn(records[name], "pipeline"))
        for tensor in ("ids", "context", "noise", "picture"):
            assert shape(record.tensors[tensor]) in said
        assert f"{sum(record.networks.values()):,} parameters" in said
        assert {short(record.networks[n]) for n in record.networks if n.startswith("text")} <= set(said)
        assert f"guidance: u + {record.guidance:g} (c − u)" in said
    pixels = words(drawn(records["scenes64-pixel"], "pipeline"))
    assert "Decoder" not in pixels and "Decoder" in words(drawn(records["sd15"], "pipeline"))
    assert short(49_490_199) in words(drawn(records["sd15"], "pipeline"))                # SD's decoder, with post_quant_conv


def test_the_autoencoder_says_what_was_recorded(records):
    root = drawn(records["sd15"], "vae")
    tips = {element.text for element in root.findall(f"{SVG}rect/{SVG}title")}
    assert tips == {blueprint.said(b) for b in records["sd15"].vae if b.parameters}
    assert "z  (B, 4, 64, 64)" in words(root) and "83,653,863 parameters" in words(root)


def test_another_model_is_another_drawing():
    first, wider = observed(TINY), observed(replace(TINY, unet=replace(TINY.unet, block_channels=(64, 64))))
    deeper = observed(replace(TINY, unet=replace(TINY.unet, layers_per_block=2)))
    assert len({drawings.draw(record, "unet") for record in (first, wider, deeper)}) == 3
    assert len(bars(drawn(deeper))) > len(bars(drawn(first)))
    blind = observed(replace(TINY, unet=replace(TINY.unet, context_dim=None)))
    assert not any("text" in block.reads for block in blind.unet) and "text" not in " ".join(words(drawn(blind)))


def test_a_students_part_is_drawn_by_its_name():
    class MyBlock(layers.ResBlock):
        pass

    with parts.swapped({"layers.ResBlock": MyBlock}):
        record = observed(TINY)
    assert any(re.match(r"\d+ MyBlock, ", text) for text in words(drawn(record)))


def test_the_gallery_shows_these_models(records):
    for file, name in (("unet-scenes64", "scenes64"), ("unet-sd15", "sd15"), ("pipeline-sd15", "sd15")):
        shown = (GALLERY / f"{file}.svg").read_text("utf-8")
        assert shown == drawings.draw(records[name], file.split("-")[0]), f"course architecture {name} draws another one by now"
        assert len(shown) < 40_000


def test_short_numbers():
    assert [short(n) for n in (7, 1280, 99_950, 421_000, 859_520_964, 9_614_720, 2_567_463_684)] == [
        "7", "1.28 k", "100.0 k", "421 k", "859.5 M", "9.61 M", "2.57 G"]


# ---- the command

@pytest.fixture
def course(command_line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*said):
        return command_line("architecture", *said)
    return run


def test_the_command_draws_a_folder_and_prints_what_it_saw(course, pipe):
    pipe.save("runs/mine/model")
    code, out, _ = course("runs/mine", "--out", "mine.svg", "--json")
    told = json.loads(out)
    assert code == 0 and ElementTree.parse("mine.svg").getroot().tag == f"{SVG}svg"
    assert told["networks"]["unet"] == sum(p.numel() for p in pipe.unet.parameters()) and told["out"] == "mine.svg"
    assert told["unet"][1]["name"] == "conv_in" and told["unet"][1]["output"] == [32, 8, 8] and told["weights"]
    code, out, _ = course("demo-latent", "--what", "pipeline")
    assert code == 0 and "pipeline-demo-latent.svg" in out and Path("pipeline-demo-latent.svg").is_file()


@pytest.mark.parametrize("said, error", [
    (["nowhere"], "unknown model 'nowhere', expected a folder, or one of"), (["scenes64", "--what", "roof"], "'roof'"),
    (["scenes64", "--out", "x.png"], ".svg"), (["scenes64-pixel", "--what", "vae"], "works on pixels"),
    (["."], "no model in ."), (["demo-latent", "--out", "file/x.svg"], "cannot write")])
def test_misuse(course, said, error):
    Path("file").write_text("")
    code, _, err = course(*said)
    assert code == 2 and error in err and "Traceback" not in err


def test_what_cannot_be_opened_or_drawn(records, tmp_path):
    with pytest.raises(CheckpointError):
        architecture.record(tmp_path)
    with pytest.raises(UsageError, match="cannot be drawn as a U"):
        blueprint.unet(replace(records["scenes64"], unet=records["scenes64"].unet[:2]))
