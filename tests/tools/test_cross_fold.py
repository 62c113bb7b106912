"""The cross-fold table, on drawn pictures and with one checkpoint in the place of all."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from imrseg.data.benchmarks import PASCAL
from imrseg.segmenter import Segmenter
from imrseg.tables import load_results
from tools import cross_fold


@pytest.fixture
def voc(tmp_path):
    """Two pictures of each complete class, and val lists of folds 1 to 3."""
    lists = {fold: [] for fold in cross_fold.FOLDS}
    for kind in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "VOC2012" / kind).mkdir(parents=True)
    for name in cross_fold.COMPLETE:
        number = PASCAL.index(name) + 1
        for i in range(2):
            mask = np.zeros((40, 60), np.uint8)
            mask[10:30, 10 + 9 * i : 40 + 9 * i] = number
            pixels = np.where(mask[..., None] > 0, 210, 90).astype(np.uint8).repeat(3, 2)
            Image.fromarray(pixels).save(tmp_path / f"VOC2012/JPEGImages/{name}{i}.jpg")
            Image.fromarray(mask).save(tmp_path / f"VOC2012/SegmentationClassAug/{name}{i}.png")
            lists[(number - 1) // 5].append(f"{name}{i}__{number:02d}")
    (tmp_path / "splits/val").mkdir(parents=True)
    for fold, lines in lists.items():
        (tmp_path / f"splits/val/fold{fold}.txt").write_text("\n".join(lines))
    return tmp_path


def test_runs_are_averaged_and_their_spread_is_told(voc, segmenter, monkeypatch, capsys):
    for run in ("a", "b"):
        for fold in cross_fold.FOLDS:
            (voc / run / f"fold{fold}").mkdir(parents=True)
            (voc / run / f"fold{fold}/lite.safetensors").touch()
    monkeypatch.setattr(Segmenter, "from_preset", lambda *args, **options: segmenter)
    words = f"--data {voc} --splits {voc}/splits --runs {voc}/a {voc}/b --episodes 4 --steps 1 --json {voc}/out.json"
    monkeypatch.setattr(sys, "argv", ["cross_fold.py", *words.split()])
    cross_fold.main()
    table = json.loads((voc / "out.json").read_text())
    assert list(table["per_class"]) == list(cross_fold.COMPLETE)
    assert table["miou"] == pytest.approx(np.mean(list(table["per_class"].values()), 0))
    assert table["spread"] == [0, 0]  # one model twice
    assert len(table["runs"]) == 2
    assert table["coarse_at_best_level"] == max(table["coarse_by_level"].values())
    assert [r["fold"] for r in load_results([voc / "out.json"])] == [1, 2, 3] * 2
    assert "sheep" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cross_fold.py", *words.replace("--episodes 4", "--episodes 2").split()])
    with pytest.raises(SystemExit, match="too few: cow, horse had none"):
        cross_fold.main()


def test_the_folds_that_are_there_are_scored(voc, segmenter, monkeypatch):
    """One fold, one class; runs of other folds cannot be averaged with it, and are named."""
    for where in ("a/fold3", "b/fold1", "b/fold3", "c"):
        (voc / where).mkdir(parents=True)
        if "fold" in where:
            (voc / where / "lite.safetensors").touch()
    monkeypatch.setattr(Segmenter, "from_preset", lambda *args, **options: segmenter)

    def score(*runs):
        words = f"--data {voc} --splits {voc}/splits --episodes 2 --steps 1 --json {voc}/out.json --runs"
        monkeypatch.setattr(sys, "argv", ["cross_fold.py", *words.split(), *(str(voc / run) for run in runs)])
        cross_fold.main()

    score("a")
    table = json.loads((voc / "out.json").read_text())
    assert list(table["per_class"]) == ["sheep"]
    assert [result["fold"] for result in table["folds"]] == [3]
    with pytest.raises(SystemExit, match=r"a has fold3; .*b has fold1, fold3"):
        score("a", "b")
    with pytest.raises(SystemExit, match="c has none"):
        score("c")
