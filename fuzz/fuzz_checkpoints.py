"""Coverage-guided fuzzing of everything that reads weights or pickles. See fuzz/README.md.

Whatever a file holds, its reader gives tensors or lists, or raises one of the two errors. Nothing in
the file is run: an audit hook ends the fuzzing where a program, a folder or a connection is asked for.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import torch._weights_only_unpickler as unpickler
import torchvision  # noqa: F401, or the first file that names a network would import it, which calls the linker
from torch import serialization

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["imrseg"]):
    from imrseg import weights
    from imrseg.coarse.lexicon import Lexicon
    from imrseg.data.pickles import load_lists
    from imrseg.errors import InputError, WeightsError

for module, name in ((unpickler.Unpickler, "load"), (serialization, "_load"), (serialization, "_legacy_load")):
    setattr(module, name, atheris.instrument_func(getattr(module, name)))  # all of torch would take minutes

READERS = (
    weights.outline,
    weights.read_state_dict,
    weights.header,
    weights.load,
    weights.describe,
    load_lists,
    Lexicon,
)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.remove", "os.rename", "subprocess.",
             "socket.", "shutil.", "pty.", "webbrowser.")  # fmt: skip
FILE = Path(tempfile.mkdtemp(), "file.pt")
watching = False


class Ran(BaseException):
    """Something in the file was run. No reader catches it."""


def watch(event: str, _: object) -> None:
    if watching and event.startswith(FORBIDDEN):
        raise Ran(event)


def try_one(data: bytes) -> None:
    global watching
    FILE.write_bytes(data)
    for read in READERS:
        watching = True
        try:
            read(FILE)
        except (WeightsError, InputError):
            pass
        finally:
            watching = False


warnings.simplefilter("ignore")
sys.addaudithook(watch)
atheris.Setup(sys.argv, try_one)
atheris.Fuzz()
