import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imrseg import ClipSettings, InputError, Segmenter, Step
from imrseg.export import describe
from imrseg.images import open_picture
from imrseg.models.refiner import held
from imrseg.networks import load_network
from imrseg.postprocess import aggregate, iou
from imrseg.precision import lacks_bfloat16
from imrseg.presets import get_preset
from imrseg.run import MAX_LABEL, MAX_SUPPORTS
from imrseg.segmenter import MAX_STEPS, pick_device, size_of


def same(a: Step, b: Step) -> bool:
    pairs = zip(a.support_soft, b.support_soft, strict=True)
    return np.array_equal(a.query_soft, b.query_soft) and all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("shots", [0, 1, 3])
def test_shapes_types_and_ranges(segmenter, cat, cup, steps, shots):
    supports = [cat[:, ::-1].copy(), cup, cat[:200, 100:150]][:shots]
    result = segmenter.segment(cat, supports, "cat", steps=steps)
    assert [s.index for s in result.steps] == list(range(steps + 1))
    for step in result.steps:
        assert step.query_mask.dtype == np.float32
        assert step.query_mask.shape == cat.shape[:2]
        assert [m.shape for m in step.support_masks] == [s.shape[:2] for s in supports]
        for mask in (step.query_mask, *step.support_masks):
            assert 0 <= mask.min() <= mask.max() <= 1
    assert result.mask.dtype == bool
    assert result.mask.shape == cat.shape[:2]
    assert isinstance(result.warnings, list)
    assert 0 <= result.confidence <= 1
    stages = ["decode", "features", "coarse", *(f"step{i}" for i in range(1, steps + 1))]
    assert list(result.seconds) == stages
    assert all(s >= 0 for s in result.seconds.values())


def test_steps_default_to_the_presets(segmenter, cat):
    assert len(segmenter.segment(cat, [], "cat").steps) == segmenter.preset.steps + 1


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 3), (2000, 30, 3), (7, 5, 3)])
def test_pictures_of_any_shape(segmenter, cup, shape):
    odd = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    result = segmenter.segment(odd, [cup], "cup", steps=1)
    assert result.mask.shape == shape[:2]
    result = segmenter.segment(cup, [odd], "cup", steps=1)
    assert result.steps[-1].support_masks[0].shape == shape[:2]


def test_path_pil_and_array_are_the_same_picture(segmenter, cup, save):
    path = save(cup, "cup.png")
    results = [segmenter.segment(q, [cup], "cup", steps=1) for q in (cup, path, str(path), Image.open(path))]
    assert all(same(results[0].steps[-1], r.steps[-1]) for r in results)


def test_a_rotated_file_is_segmented_upright(segmenter, cat, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cat).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "r.png", exif=exif)
    rotated = segmenter.segment(tmp_path / "r.png", [], "cat", steps=1)
    np.testing.assert_array_equal(
        rotated.steps[-1].query_mask, segmenter.segment(cat, [], "cat", steps=1).steps[-1].query_mask
    )


def test_the_same_input_gives_the_same_output(segmenter, cat, cup):
    first = segmenter.segment(cat, [cup], "cat", steps=2)
    segmenter.segment(cup, [], "cup", steps=1)
    again = segmenter.segment(cat, [cup], "cat", steps=2)
    assert all(same(a, b) for a, b in zip(first.steps, again.steps, strict=True))
    remember, segmenter.remember = segmenter.remember, 0
    try:
        fresh = segmenter.segment(cat, [cup], "cat", steps=2)
    finally:
        segmenter.remember = remember
    assert all(same(a, b) for a, b in zip(first.steps, fresh.steps, strict=True))
    assert first.confidence == again.confidence == fresh.confidence


def test_iterate_yields_what_segment_returns(segmenter, cat, cup):
    whole = segmenter.segment(cat, [cup], "cat", steps=3).steps
    one_by_one = list(segmenter.iterate(cat, [cup], "cat", steps=3))
    assert len(whole) == len(one_by_one) == 4
    assert all(same(a, b) for a, b in zip(whole, one_by_one, strict=True))


def test_fewer_steps_are_the_first_of_more(segmenter, cat, cup):
    long, short = (segmenter.segment(cat, [cup], "cat", steps=n).steps for n in (4, 2))
    assert all(same(a, b) for a, b in zip(short, long[:3], strict=True))


# A consensus of one picture sums half as many rows as one of the same picture twice.
@pytest.mark.parametrize(("consensus", "apart"), [("off", 1e-6), ("on", 2e-5)])
def test_zero_shot_is_the_query_supporting_itself(segmenter, cat, consensus, apart):
    """Section 5.4 of the paper."""
    alone = segmenter.segment(cat, [], "cat", steps=2, consensus=consensus)
    itself = segmenter.segment(cat, [cat], "cat", steps=2, consensus=consensus)
    for a, b in zip(alone.steps, itself.steps, strict=True):
        assert a.support_masks == []
        np.testing.assert_allclose(a.query_soft, b.query_soft, atol=apart)


def test_each_support_has_its_own_run(segmenter, cat, cup):
    """Without a consensus, as in the paper."""
    flipped = cat[:, ::-1].copy()
    both = segmenter.segment(cat, [flipped, cup], "cat", steps=2, aggregate="vote", consensus="off")
    singles = [segmenter.segment(cat, [s], "cat", steps=2, consensus="off") for s in (flipped, cup)]
    assert np.array_equal(both.steps[0].query_mask, singles[0].steps[0].query_mask)
    for index in (1, 2):
        step = both.steps[index]
        for k, single in enumerate(singles):
            np.testing.assert_allclose(step.query_soft[k], single.steps[index].query_soft[0], atol=1e-4)
            np.testing.assert_allclose(step.support_masks[k], single.steps[index].support_masks[0], atol=1e-4)
        sized = [replace(step, query_soft=step.query_soft[k : k + 1]).query_mask for k in range(2)]
        assert np.array_equal(step.query_mask, aggregate(sized, "vote"))
        assert np.array_equal(replace(step, how="mean").query_mask, aggregate(sized, "mean"))


def test_warnings_are_collected(segmenter, cat):
    glass = np.dstack([cat, np.full(cat.shape[:2], 128, np.uint8)])
    result = segmenter.segment(cat, [glass], "a fluffy red zebra", steps=1)
    assert any("transparent" in w for w in result.warnings)
    assert any("read as “zebra”" in w for w in result.warnings)


def test_a_label_that_is_not_there_is_less_likely(segmenter, cat):
    assert segmenter.segment(cat, [], "cat", 0).confidence > segmenter.segment(cat, [], "aeroplane", 0).confidence


def test_bad_input_is_refused(segmenter, cat, tmp_path):
    for label in ("", "   ", "!!", None, 5, "x" * (MAX_LABEL + 1)):
        with pytest.raises(InputError):
            segmenter.segment(cat, [], label)
    for steps in (-1, MAX_STEPS + 1, 1.5, float("nan"), "2" * 10_000, True, np.bool_(1), np.float64(1), 10**5000):
        with pytest.raises(InputError, match="whole number from 0 to 20"):
            segmenter.segment(cat, [], "cat", steps=steps)
    for seed in (-1, 2**64, 1.5, None, "0", True, float("nan")):
        with pytest.raises(InputError, match="seed must be a whole number from 0 to 18446744073709551615"):
            segmenter.segment(cat, [], "cat", seed=seed)
    for threshold in (-0.1, 1.1, float("nan"), float("inf"), "0.5" * 1000, None, True, [0.5], 1j):
        with pytest.raises(InputError, match="number from 0 to 1"):
            segmenter.segment(cat, [], "cat", threshold=threshold)
    with pytest.raises(InputError, match="vote, mean"):
        segmenter.segment(cat, [], "cat", aggregate="median")
    with pytest.raises(InputError, match="Accepted: up to 10"):
        segmenter.segment(cat, [cat] * (MAX_SUPPORTS + 1), "cat")
    for supports in (cat, "support.jpg", None):
        with pytest.raises(InputError, match="must be a list"):
            segmenter.segment(cat, supports, "cat")
    with pytest.raises(InputError, match="no picture file"):
        segmenter.segment(cat, [tmp_path / "none.jpg"], "cat")
    with pytest.raises(InputError, match="no preset"):
        Segmenter.from_preset("huge")
    for coarse in ("cam", "lite:RN50", ""):
        with pytest.raises(InputError, match="Accepted: lite, clip, clip:MODEL"):
            Segmenter.from_preset("lite", "cpu", coarse=coarse or ":")
    with pytest.raises(InputError, match="Choose clip's, or leave"):
        Segmenter.from_preset("lite", "cpu", clip=ClipSettings())
    for device in ("tpu9", "cuda:99", "gpu", ""):
        with pytest.raises(InputError):
            pick_device(device)


def test_numpys_numbers_are_numbers(segmenter, cat):
    result = segmenter.segment(cat, [], "cat", steps=np.int64(1), threshold=np.float32(0.25), seed=np.uint8(3))
    assert (len(result.steps), result.threshold) == (2, 0.25)
    assert type(result.threshold) is float


def small(monkeypatch, room: int) -> Segmenter:
    """A segmenter on a device that has room for ``room`` pictures and for as many pairs at once."""
    segmenter = Segmenter.from_preset("lite", "cpu")
    segmenter.device = torch.device("cuda")
    segmenter._reload = partial(Segmenter.from_preset, "lite", "cpu")
    encode, step = segmenter.network.encoder.encode, segmenter.network.refiner.step

    def full(call, size):
        def limited(batch):
            if size(batch) > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return call(batch)

        return limited

    object.__setattr__(segmenter.network.encoder, "encode", full(encode, len))
    monkeypatch.setattr(segmenter.network.refiner, "step", full(step, lambda state: len(state.query_masks)))
    return segmenter


ONE_BY_ONE = "The device's memory was full; pictures were taken one by one."
ON_THE_CPU = "The device's memory was full; the result was computed on the CPU, which takes longer."


@pytest.mark.parametrize(
    ("room", "said"), [(3, []), (2, [ONE_BY_ONE]), (1, [ONE_BY_ONE]), (0, [ON_THE_CPU])], ids=["3", "2", "1", "0"]
)
def test_a_full_device_is_used_sparingly_then_the_cpu(segmenter, cat, cup, monkeypatch, room, said):
    wanted = segmenter.segment(cat, [cup, cat[:, ::-1].copy()], "cat", steps=2)
    result = small(monkeypatch, room).segment(cat, [cup, cat[:, ::-1].copy()], "cat", steps=2)
    assert result.warnings == [*wanted.warnings, *said]
    for a, b in zip(wanted.steps, result.steps, strict=True):
        np.testing.assert_allclose(a.query_soft, b.query_soft, atol=1e-4)
        np.testing.assert_allclose(a.support_soft, b.support_soft, atol=1e-4)


def test_a_device_that_fills_up_in_the_middle_of_a_run(segmenter, cat, cup, monkeypatch):
    wanted = segmenter.segment(cat, [cup], "cat", steps=2)
    tight = small(monkeypatch, 2)
    run = tight.start(cat, [cup], "cat")
    run.advance()
    monkeypatch.setattr(tight.network.refiner, "step", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError))
    run.advance()
    assert run.warnings == [*wanted.warnings, ONE_BY_ONE, ON_THE_CPU]
    assert run.segmenter.device == torch.device("cpu")
    for a, b in zip(wanted.steps, run.steps, strict=True):
        np.testing.assert_allclose(a.query_soft, b.query_soft, atol=1e-4)


def test_a_device_that_fills_up_before_a_released_run_goes_on(segmenter, cat, cup, monkeypatch):
    wanted = segmenter.segment(cat, [cup], "cat", steps=3)
    for go_on in (lambda run: run.advance(), lambda run: run.correct(1, {0: np.zeros((4, 4), np.int8)})):
        tight = small(monkeypatch, 2)
        run = tight.start(cat, [cup], "cat")
        run.advance_by(2)
        run.release()
        tight.forget()
        object.__setattr__(tight.network.encoder, "encode", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError))
        go_on(run)
        assert run.segmenter.device == torch.device("cpu")
        assert run.warnings == [*wanted.warnings, ON_THE_CPU]
        run.advance()
        np.testing.assert_allclose(run.steps[1].query_soft, wanted.steps[1].query_soft, atol=1e-4)


def test_no_memory_at_all_is_said_once(cat, monkeypatch):
    hopeless = small(monkeypatch, 0)
    hopeless._reload = None
    with pytest.raises(torch.OutOfMemoryError, match="too little memory"):
        hopeless.segment(cat, [], "cat")


def test_devices_that_are_accepted():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


def test_features_are_remembered_by_content(segmenter, cat, cup):
    segmenter.segment(cat, [cup], "cat", steps=0)
    known = len(segmenter._remembered)
    segmenter.segment(cat.copy(), [cup.copy()], "dog", steps=0)
    assert len(segmenter._remembered) == known
    one = size_of(next(iter(segmenter._remembered.values())))
    remember, segmenter.remember = segmenter.remember, one
    try:
        segmenter.segment(cat, [cup], "cat", steps=0)
        assert len(segmenter._remembered) == 1
    finally:
        segmenter.remember = remember


def test_threads_do_not_disturb_each_other(segmenter, cat, cup):
    jobs = [(cat, "cat"), (cup, "cup"), (cat, "dog"), (cup, "table")] * 2
    alone = [segmenter.segment(picture, [cat], label, steps=1) for picture, label in jobs]
    barrier = threading.Barrier(4)

    def work(job):
        barrier.wait()
        return segmenter.segment(job[0], [cat], job[1], steps=1)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, jobs))
    assert all(same(a.steps[-1], b.steps[-1]) for a, b in zip(alone, together, strict=True))
    assert [a.confidence for a in alone] == [b.confidence for b in together]


@pytest.mark.parametrize("name", ["xpu", "meta", "tpu", "cuda:x", ""])
def test_devices_that_are_not_there_are_told_in_words(name):
    with pytest.raises(InputError, match="Accepted: auto, cpu, cuda"):
        Segmenter.from_preset("lite", name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(segmenter, cat, cup):
    there = Segmenter.from_preset("lite", "cuda")
    on_cpu = segmenter.segment(cat, [cup], "cat", steps=3)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = there.segment(cat, [cup], "cat", steps=3)
    for a, b in zip(exact.steps, on_cpu.steps, strict=True):
        np.testing.assert_allclose(a.query_soft, b.query_soft, atol=0.02)
    there.forget()  # the features, for others: PyTorch's convolutions round to TF32 unless told otherwise
    assert (there.segment(cat, [cup], "cat", steps=3).mask != on_cpu.mask).mean() < 0.01


@pytest.mark.skipif(lacks_bfloat16(torch.device("cpu")), reason="a processor without bfloat16")
def test_lower_precision_stays_near_and_is_told(segmenter, cat, cup, tmp_path):
    near = Segmenter.from_preset("lite", "cpu", precision="bfloat16")
    exact, low = segmenter.segment(cat, [cup], "cat"), near.segment(cat, [cup], "cat")
    assert low.steps[0].query_mask.tolist() == exact.steps[0].query_mask.tolist()  # stage 1 stays as it is
    difference = np.abs(low.steps[-1].query_mask - exact.steps[-1].query_mask)
    assert 0 < difference.max() < 0.2
    assert (low.mask != exact.mask).mean() < 0.005
    assert (describe(near)["precision"], describe(segmenter)["precision"]) == ("bfloat16", "float32")


def test_a_processor_without_bfloat16_takes_float32_and_says_so(segmenter, cat, cup, monkeypatch):
    monkeypatch.setattr("imrseg.segmenter.lacks_bfloat16", lambda device: True)
    careful = Segmenter.from_preset("lite", "cpu", precision="bfloat16")
    found, exact = careful.segment(cat, [cup], "cat"), segmenter.segment(cat, [cup], "cat")
    assert all(same(a, b) for a, b in zip(found.steps, exact.steps, strict=True))
    assert describe(careful)["precision"] == "float32"
    assert [w for w in found.warnings if w not in exact.warnings] == careful.notes
    assert "bfloat16" in careful.notes[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "float16"}, "float32, bfloat16"),
        ({"precision": "half"}, "“half”"),
        ({"launch": "graphs"}, "graphs on CUDA"),
        ({"launch": "fast"}, "“fast”"),
    ],
    ids=str,
)
def test_precisions_and_launches_that_are_not_there(options, said):
    with pytest.raises(InputError, match=said):
        Segmenter.from_preset("lite", "cpu", **options)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_give_the_same(segmenter, cat, cup):
    compiled = Segmenter.from_preset("lite", "cpu", launch="compile")
    expected, found = segmenter.segment(cat, [cup], "cat"), compiled.segment(cat, [cup], "cat")
    np.testing.assert_allclose(found.steps[-1].query_mask, expected.steps[-1].query_mask, atol=1e-3)


def test_what_is_remembered_keeps_no_more_memory_than_it_says(segmenter, cat, cup):
    segmenter.forget()
    remember, segmenter.remember = segmenter.remember, 10**9
    try:
        segmenter.features(segmenter.network.encoder, [open_picture(cat), open_picture(cup)])  # one batch
        one = size_of(next(iter(segmenter._remembered.values())))
        segmenter.remember = one
        segmenter.features(segmenter.network.encoder, [open_picture(cat)])
        assert len(segmenter._remembered) == 1
        assert held(segmenter._remembered) == one
    finally:
        segmenter.remember = remember


def test_the_verdict_is_of_the_mask_that_is_returned(segmenter, cat):
    """Masks fitted to edges may be cut where those before were not, and the other way round."""
    result = segmenter.segment(cat, [], "cat", steps=1, threshold=0.999, edges="guided")
    assert result.mask.mean() > 0.001
    assert not any("Nothing was found" in warning for warning in result.warnings)


def test_lite_sees_pictures_larger_where_it_is_asked_to(segmenter, cat, cup):
    large = Segmenter.from_preset("lite", "cpu", side=448)
    seen = large.segment(cat, [cup], "cat", steps=1)
    assert [step.query_soft.shape[-2:] for step in seen.steps] == [(14, 14), (112, 112)]
    assert seen.mask.shape == cat.shape[:2]
    usual = segmenter.segment(cat, [cup], "cat", steps=1)
    assert iou(seen.mask, usual.mask) > 0.8
    assert not np.array_equal(seen.mask, usual.mask)
    assert (describe(large)["lite_side"], describe(segmenter)["lite_side"]) == (448, None)
    trained = Segmenter.from_preset("lite", "cpu", side=320)
    assert describe(trained)["lite_side"] is None
    assert trained.network.encoder.name == segmenter.network.encoder.name


@pytest.mark.parametrize("side", [0, 96, 100, 450, 1056, 448.0, True, "448"])
def test_sides_that_lite_does_not_see(side):
    with pytest.raises(InputError, match="a multiple of 32 from 128 to 1024 pixels"):
        Segmenter.from_preset("lite", "cpu", side=side)


def test_only_lite_sees_at_another_side(tmp_path):
    with pytest.raises(InputError, match="Only lite sees pictures at another side"):
        load_network(get_preset("imr-hsnet-vgg16"), tmp_path / "x", torch.device("cpu"), side=448)


def test_at_a_larger_side_coarse_masks_see_the_usual_one_too(segmenter, cat):
    closer = Segmenter.from_preset("lite", "cpu", side=448)
    picture = open_picture(cat)
    (seen,) = closer.features(closer.network.encoder, [picture])
    (usual,) = segmenter.features(segmenter.network.encoder, [picture])
    assert (seen["head"].shape[-1], seen["overview"].shape[-1], usual["head"].shape[-1]) == (14, 10, 10)
    reading = closer.masker.read("cat", [], False)
    both, (sure,) = closer.masker.masks([seen], reading)
    _, (usually,) = segmenter.masker.masks([usual], reading)
    assert sure == pytest.approx(usually, abs=0.05)  # it is calibrated there
    assert (both.shape, float(both.max())) == ((1, 1, 14, 14), pytest.approx(1))
    alone, _ = closer.masker.masks([{"head": seen["head"]}], reading)
    mean = (
        alone * F.interpolate(closer.masker.masks([{"head": seen["overview"]}], reading)[0], (14, 14), mode="bilinear")
    ).sqrt()
    torch.testing.assert_close(both, mean / mean.max())
    smaller = Segmenter.from_preset("lite", "cpu", side=256)
    assert "overview" not in smaller.features(smaller.network.encoder, [picture])[0]
