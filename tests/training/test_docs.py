"""docs/training.md names configs, settings and options that there are."""

import re
from pathlib import Path
from typing import get_type_hints

from imrseg import cli
from imrseg.training import CONFIGS, Config, get_config

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text("utf-8")


def test_configs_and_settings_exist():
    named = set(re.findall(r"--config ([\w-]+)", TEXT))
    assert named <= CONFIGS.keys()
    keys = set(re.findall(r"`([a-z_]+)=", TEXT)) | set(re.findall(r"--set ([a-z_]+)=", TEXT))
    assert {"steps", "cell", "schedule", "masking"} <= keys <= get_type_hints(Config).keys()
    for setting in re.findall(r"(\w+=\w+(?:\|\w+)+)", TEXT):
        key, values = setting.split("=")
        for value in values.split("|"):
            get_config("lite", [f"{key}={value}"] + (["neck=hsnet"] if key == "masking" else []))


def test_commands_are_understood():
    text = TEXT.replace("\\\n", " ")
    commands = re.findall(r"^(?:python|torchrun --nproc-per-node \d) -m imrseg (.*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        cli.parser().parse_args(command.partition("  #")[0].split())
