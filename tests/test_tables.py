"""The paper's tables: what is published stays what it is, and results find their rows."""

import json

import numpy as np
import pytest

from imrseg.complexity import cost
from imrseg.errors import InputError
from imrseg.published import TABLES
from imrseg.tables import facts, load_results, report

BASE = {
    "benchmark": "pascal", "shots": 1, "fold": 0, "miou": [0.2, 0.5, 0.6], "per_class": {"cat": [0.2, 0.5, 0.6]},
    "coarse": "clip:RN50", "clip": {"method": "gradcam"},
    "network": {"name": "imr-hsnet", "backbone": "resnet50", "authors_compatible": True},
}  # fmt: skip
SMALL = {"network": {"neck": "hsnet"}, "coarse": "lite", "clip": None, "miou": [0.2, 0.5, 0.6, 0.7]}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def line_after(text: str, start: str) -> str:
    lines = text.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith(start)) + 1]


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.number)
def test_published_means_are_those_of_their_folds(table):
    """A number copied wrong shows; one slip is the paper's own."""
    for row in table.rows:
        assert len(row.values) in (0, 5)
        assert len(row.name) == len(table.heads)
        if row.values and None not in row.values and row.values[4] != 26.2:
            assert np.mean(row.values[:4]) == pytest.approx(row.values[4], abs=0.11), row


def test_without_results_every_row_of_ours_says_not_run():
    text = report([])
    own = [line for line in text.splitlines() if "  ours" in line]
    assert len(own) == sum(row.ours is not None for table in TABLES for row in table.rows)
    assert all(line.endswith("not run") for line in own)
    assert all(f"Table {n}:" in text for n in ("1", "2", "3", "4", "5", "6", "S2", "S3", "S4", "S5", "S6", "S7"))


def test_the_authors_weights_fill_the_papers_own_rows():
    results = [{**BASE, "fold": fold, "miou": [0.2, 0.5, 0.6 + fold / 100]} for fold in range(4)]
    text = report(results, ["1"])
    assert rows(line_after(text, "ResNet50            IMR-HSNet"))[0] == [
        "ours",
        "60.0",
        "61.0",
        "62.0",
        "63.0",
        "61.5",
    ]
    assert "4 of 4 results" in text


def test_some_folds_and_several_seeds_are_said_so():
    results = [{**BASE, "fold": 1, "miou": [0.2, 0.5, value]} for value in (0.5, 0.6)] + [{**BASE, "fold": 3}]
    line = line_after(report(results, ["6"]), "IMR-HSNet")
    assert line.split()[:6] == ["ours", "-", "55.0", "-", "60.0", "57.5"]
    assert line.endswith("mean of fold 1, 3; mean of up to 2 runs")
    line = line_after(report([{**BASE, "fold": None}], ["6"]), "IMR-HSNet")
    assert line.split()[:6] == ["ours", "-", "-", "-", "-", "60.0"]
    assert line.endswith("all folds together")


def test_each_form_of_hsnet_is_told_by_its_training_and_its_step():
    network = {"name": "imr-hsnet", "backbone": "resnet50", "cell": "none", "masking": "features", "residual": False}
    small = {"neck": "hsnet", "cell": "none", "masking": "features", "residual": False}
    results = [
        {**BASE, "fold": 0, "miou": [0.1, 0.2, 0.3, 0.4], "network": network, "config": {"start": start, "steps": 1}}
        for start in ("true", "coarse")
    ]
    results += [{**r, "network": small, "coarse": "lite", "clip": None, "miou": [0.1, 0.5, 0.6, 0.7]} for r in results]
    text = report(results, ["5"])
    for name, wanted, lite in (
        ("+ HSNet (pretrained)", "20.0", "50.0"), ("+ HSNet (mutual)", "40.0", "70.0"),
        ("+ HSNet (retrained)", "20.0", "50.0"), ("+ HSNet (retrained + mutual)", "40.0", "70.0"),
    ):  # fmt: skip
        assert line_after(text, name).split()[1] == wanted
        after = text.splitlines()[text.splitlines().index(line_after(text, name)) + 1]
        assert after.split()[:4] == ["ours,", "lite's", "backbone", lite]
    assert line_after(text, "IMR-HSNet").endswith("not run")


def test_ablations_do_not_pass_for_the_method_itself():
    for network, config in (
        ({"cell": "conv"}, {}), ({}, {"schedule": "none"}), ({}, {"steps": 1}), ({"cell": "none"}, {})
    ):  # fmt: skip
        result = {**BASE, "network": {**BASE["network"], **network}, "config": {"steps": 2, **config}}
        assert line_after(report([result], ["6"]), "IMR-HSNet").endswith("not run")
        assert "1 of 1" in report([result], ["S5", "S6"]) or config == {"steps": 1}


def test_what_a_consensus_gained_is_not_the_papers_method():
    result = {**BASE, **SMALL}
    assert "1 of 1 results appear" in report([result], ["6"])
    assert "2 of 3 results appear" in report([result, *({**result, "consensus": c} for c in ("on", "off"))], ["6"])


@pytest.mark.parametrize(
    "changed",
    [
        {"edges": "grabcut"}, {"prompts": "ensemble"}, {"distractors": ["grass"]}, {"coarse": "clip:ViT-B-16/openai"},
        {"clip": {"method": "gradcam", "contrast": "cosine"}}, {"clip": {"method": "gradcam", "side": 448}},
    ],
    ids=str,
)  # fmt: skip
def test_other_settings_are_not_averaged_with_the_papers(changed):
    results = [BASE, {**BASE, **changed, "miou": [0.9, 0.9, 0.9]}]
    line = line_after(report(results, ["6"]), "IMR-HSNet")
    assert (line.split()[1], "runs" in line) == ("60.0", False)
    assert "1 of 2 results appear" in report(results, ["1", "4", "6"])


def test_true_masks_of_supports_are_not_the_papers_setting():
    result = {**BASE, **SMALL}
    assert "1 of 2 results appear" in report([result, {**result, "true_supports": True}], ["6"])


def test_the_shipped_lite_is_recognised(segmenter):
    from imrseg.evaluation import origin

    header = origin(segmenter)
    told = facts({**BASE, **header, "coarse": "lite", "clip": None})
    assert told["neck"] == "lite"
    assert told["backbone"] == "efficientnet-lite2"
    assert (told["cell"], told["trained"], told["coarse"]) == ("group", 3, "lite")


def test_results_come_from_files_folders_and_cross_fold_tables(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.json").write_text(json.dumps(BASE))
    (tmp_path / "a/other.json").write_text('{"speed": 3}')
    (tmp_path / "cross.json").write_text(json.dumps({"miou": [0.1], "folds": [BASE, {**BASE, "fold": 2}]}))
    assert [r["fold"] for r in load_results([tmp_path / "a", tmp_path / "cross.json"])] == [0, 0, 2]
    (tmp_path / "short.json").write_text(json.dumps({k: v for k, v in BASE.items() if k != "shots"}))
    (tmp_path / "odd.json").write_text(json.dumps({**BASE, "network": "lite"}))
    for bad in ("a/other.json", "none.json", "short.json", "odd.json"):
        with pytest.raises(InputError, match=bad):
            load_results([tmp_path / bad])
    with pytest.raises(InputError, match="S7"):
        report([], ["8"])


def test_a_cell_costs_what_its_convolutions_do():
    none, conv, group = (cost(cell) for cell in ("none", "conv", "group"))
    assert none.parameters == 26_081_888  # the paper says 26.1M
    inputs, hidden, positions = 1 + 128 + 512 + 128, 128, 50 * 50
    assert conv.step + conv.once - none.step - none.once == (
        3 * inputs * hidden * 9 * positions + (1024 * 512) * 25 * 25  # the gates, and the features' projection
    )
    # What features and masks add to the grouped convolutions is computed apart.
    grouped = 3 * (inputs * 512 + 2 * (512 // 16) * hidden * 9) * positions
    assert group.step + group.once - none.step - none.once == grouped + (1024 * 512) * 25 * 25


def test_the_shipped_lite_fills_its_own_rows(segmenter):
    """As ``evaluate --consensus off`` writes it."""
    from imrseg.evaluation import origin

    shipped = {**BASE, **origin(segmenter), "coarse": "lite", "clip": None, "miou": [0.4, 0.5, 0.6, 0.7]}
    results = [
        {**shipped, "benchmark": benchmark, "shots": shots, "fold": fold}
        for benchmark in ("pascal", "coco") for shots in (0, 1, 5) for fold in range(4)
    ]  # fmt: skip
    for number in ("1", "2", "S2", "S3", "S4"):
        own = [line for line in report(results, [number]).splitlines() if "lite (ours)" in line]
        assert len(own) == (3 if number == "S4" else 1)
        assert all(line.split()[-5:] == ["70.0"] * 5 for line in own)


def test_unlike_settings_have_a_line_each():
    """The authors' weights, and a network trained here by the same recipe, in one folder as docs/training.md has it."""
    own = {**BASE, "config": {"steps": 2}, "miou": [0.2, 0.3, 0.4]}
    text = report([BASE, own, {**own, "side": 400, "miou": [0.2, 0.3, 0.5]}], ["6"]).splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith("IMR-HSNet")) + 1
    assert [(line.split()[1], "runs" in line) for line in text[first:]] == [
        ("60.0", False), ("40.0", False), ("50.0", False)
    ]  # fmt: skip
    assert "trained here; mean of fold 0" in text[first + 1]
    assert "trained here; scored at 400 pixels; mean of fold 0" in text[first + 2]
    large = report([own, {**own, "lite_side": 448}], ["6"])
    assert "trained here; seen at 448 pixels; mean of fold 0" in large
    five = {**BASE, "shots": 5}
    assert "supports by mean" in report([five, {**five, "aggregate": "mean"}], ["S2"])


def test_steps_that_were_not_scored_do_not_count():
    short = {**BASE, "miou": [0.9], "per_class": {"cat": [0.9]}}
    assert line_after(report([BASE, short], ["6"]), "IMR-HSNet").split()[1] == "60.0"
    assert line_after(report([short], ["6"]), "IMR-HSNet").endswith("not run")
    assert line_after(report([short], ["4"]), "CLIP-CAM").split()[1] == "90.0"  # the coarse masks do


def test_files_are_counted_once_and_those_passed_over_are_named(tmp_path, caplog):
    (tmp_path / "one.json").write_text(json.dumps(BASE))
    (tmp_path / "half.json").write_text(json.dumps(BASE)[:40])
    (tmp_path / "folder.json").mkdir()
    assert len(load_results([tmp_path, tmp_path / "one.json"])) == 1
    assert "half.json is not a result" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"miou": ["a"]}, {"miou": [None]}, {"miou": 0.5}, {"miou": []}, {"fold": [0]}, {"fold": 9}, {"fold": "0"}, {"shots": "1"},
     {"per_class": {"cat": []}}, {"per_class": [1]}],
    ids=str,
)  # fmt: skip
def test_results_with_something_else_in_them_are_refused(tmp_path, change):
    (tmp_path / "odd.json").write_text(json.dumps({**BASE, **change}))
    with pytest.raises(InputError, match=r"odd\.json is not a result"):
        load_results([tmp_path / "odd.json"])


def test_nested_without_end_is_no_result(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.json is not a result"):
        load_results([tmp_path / "deep.json"])


def test_weights_that_saw_the_classes_have_a_line_of_their_own():
    held_out, seen = {**BASE, "weights": {"imr-hsnet-resnet50-pascal-0.pt": "x"}}, {**BASE, "miou": [0.2, 0.5, 0.9]}
    seen["weights"] = {"imr-hsnet-resnet50-coco-0.safetensors": "x"}
    text = report([held_out, seen], ["1"])
    assert "60.0  mean of fold 0\n" in text
    assert "90.0  the weights of coco-0; mean of fold 0\n" in text
    lite = {**BASE, **SMALL, "network": {"neck": "lite"}, "seen": ["cat"], "consensus": "off"}
    assert "trained on its classes" in report([lite], ["1"])


def test_a_coarse_mask_has_no_consensus():
    zero = {**BASE, "shots": 0, "miou": [0.3], "consensus": "on"}
    assert "30.0" in report([zero], ["4"])
    assert "30.0" not in report([{**zero, "miou": [0.2, 0.3]}], ["4"])


def test_precisions_and_missing_classes_are_said():
    low = {**BASE, "precision": "bfloat16", "miou": [0.2, 0.5, 0.1], "skipped": ["bus"], "unreached": ["cow"]}
    text = report([{**BASE, "precision": "float32"}, low], ["1"])
    assert "60.0  mean of fold 0\n" in text
    assert "10.0  in bfloat16; mean of fold 0; without bus, cow\n" in text
