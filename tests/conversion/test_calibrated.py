"""Methods that look at a text: every layer is pruned by what the pruned layers before it give."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import endor_jax as endor
from endor_jax import models
from endor_jax.conversion import calibrate, pipeline
from endor_jax.conversion.pipeline import run_conversion, survey_conversion
from endor_jax.conversion.settings import CalibrationText, ConvertSettings
from endor_jax.errors import InvalidInputError, ResumeError
from endor_jax.format.layout import FieldLayout
from endor_jax.prune.admm import admm
from endor_jax.prune.sparsegpt import sparsegpt
from endor_jax.prune.structure import dropped
from endor_jax.prune.wanda import wanda
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo
from endor_jax.text import load_tokenizer
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus
from tests.cases import spread
from tests.conversion.interrupting import contents
from tests.tiny_models import LLAMA, OPT, OPT_350M, QWEN3, byte_tokenizer, random_tensors, write_tiny

pytestmark = pytest.mark.usefixtures("compiled_quickly")
WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
CONFIGS = {
    name: config | {"num_hidden_layers": 2}
    for name, config in {"llama": LLAMA, "opt": OPT, "opt-350m": OPT_350M, "qwen3": QWEN3 | WINDOW}.items()
}
BLOCKS, LENGTH = 6, 24


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(read_corpus()[100_000:104_000])
    return str(path)


@pytest.fixture(scope="session")
def source(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("calibrated") / request.param
    return write_tiny(directory, CONFIGS[request.param], tokenizer=True)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("calibrated") / "one", CONFIGS["llama"], tokenizer=True)


def settings_of(text, method="sparsegpt", sparsity: float | None = 0.5, seed=0, **others):
    calibration = CalibrationText(text, blocks=BLOCKS, length=LENGTH, seed=seed)
    return ConvertSettings(prune=method, sparsity=sparsity, calibration=calibration, **others)


def tensors_of(path):
    with endor.open(path) as checkpoint:
        return {
            (record.name, name): checkpoint.read_tensor(record.name, name)
            for record in checkpoint.manifest.records
            for name in record.stats
        }


def matrices(tensors):
    return {key: array for key, array in tensors.items() if key[0].startswith("layers.") and array.ndim == 2}


METHODS = [("wanda", "layer"), ("sparsegpt", "layer"), ("sparsegpt", "model"), ("admm", "model")]


@pytest.mark.parametrize(
    ("source", "method", "target"),
    [
        *((family, *method) for family, method in spread(["llama", "opt"], METHODS, every=2)),
        ("opt-350m", "wanda", "layer"),
        ("opt-350m", "sparsegpt", "model"),
        ("qwen3", "sparsegpt", "layer"),
    ],
    indirect=["source"],
)
def test_every_layer_is_pruned_by_what_the_pruned_layers_before_it_give(
    source, tmp_path, text, method, target
):
    run_conversion(source, tmp_path / "dst", settings=settings_of(text, method, target=target))
    stored = tensors_of(tmp_path / "dst")
    run_conversion(source, tmp_path / "dense", settings=ConvertSettings())
    dense = tensors_of(tmp_path / "dense")
    token_ids = load_tokenizer(source).encode(read_corpus(text))
    with endor.open(tmp_path / "dense") as checkpoint:
        expected = in_one_piece(dense, checkpoint.model_config(), token_ids, method, target)
    for key, array in stored.items():
        if key not in expected:
            np.testing.assert_array_equal(array, dense[key])
            continue
        # Sums in another order may move a weight that is on the edge.
        differing = np.mean((array == 0) != (expected[key] == 0))
        assert differing <= (0.0 if method == "wanda" else 0.002), key
        np.testing.assert_allclose(array, expected[key], atol=2e-3 if differing == 0 else 0.3)


def in_one_piece(tensors, config, token_ids, method, target):
    """The same written plainly: the whole text at once, all layers in memory, one matrix after another."""
    decoder = models.decoder(models.from_hf(config))
    ids = shuffled_blocks(token_ids, LENGTH, seed=0, count=BLOCKS)
    records = {}
    for (record, name), array in tensors.items():
        records.setdefault(record, {})[name] = jnp.asarray(array)
    start = jnp.zeros(BLOCKS, jnp.int32)
    x = records["embedding"]["weight"][ids]
    x = unpruned = models.stem(decoder, records.get("stem", {}), x, start)
    pruned = {}
    for layer in range(decoder.config.layers):
        params = dict(records[f"layers.{layer}"])
        cache = models.create_cache(
            batch=BLOCKS,
            capacity=LENGTH,
            kv_heads=decoder.config.kv_heads,
            head_dim=decoder.config.head_dim,
            dtype="float32",
        )
        _, _, inputs = models.tapped_block(decoder, params, x, cache, start)
        unpruned, _, meant = models.tapped_block(decoder, params, unpruned, cache, start)
        for name, value in inputs.items():
            flat = np.asarray(value, np.float64).reshape(-1, value.shape[-1])
            weight = np.asarray(params[name])
            if target == "model":
                goal = np.asarray(meant[name], np.float64).reshape(flat.shape)
                weight = retargeted(weight, flat, goal).astype(np.float32)
            if method == "wanda":
                mask = wanda(weight, np.sum(flat**2, axis=0).astype(np.float32), sparsity=0.5)
                new = np.where(mask, weight, 0)
            else:
                prune = {"sparsegpt": sparsegpt, "admm": admm}[method]
                new = np.asarray(prune(weight, (flat.T @ flat).astype(np.float32), sparsity=0.5).weight)
            params[name] = jnp.asarray(new)
            pruned[f"layers.{layer}", name] = new
        x, _ = models.block(decoder, params, x, cache, start)
    return pruned


def retargeted(weight, inputs, goal):
    """Half of the way to W* = W(C + λI)(H + λI)⁻¹ (endor_jax/prune/retarget.py), in float64."""
    products = inputs.T @ inputs
    damping = 0.1 * np.mean(np.diagonal(products)) * np.eye(len(products))
    best = weight @ (goal.T @ inputs + damping) @ np.linalg.inv(products + damping)
    return (weight + best) / 2


@pytest.mark.parametrize(
    ("method", "structure"),
    spread(["wanda", "sparsegpt", "admm"], [None, "row", "matrix", "2:4"], every=2),
)
def test_what_is_stored_is_as_sparse_as_was_asked(llama, tmp_path, text, method, structure):
    sparsity = None if structure == "2:4" else 0.37
    settings = settings_of(text, method, sparsity, structure=structure)
    run_conversion(llama, tmp_path / "dst", settings=settings)
    for key, array in matrices(tensors_of(tmp_path / "dst")).items():
        rows, columns = array.shape
        zeros = array == 0
        assert not np.signbit(array[zeros]).any()
        scope = settings.mask_structure.scope
        if scope == "row":
            np.testing.assert_array_equal(zeros.sum(axis=1), dropped(0.37, columns), err_msg=str(key))
        elif scope == "matrix":
            assert zeros.sum() == dropped(0.37, rows * columns), key
        else:
            np.testing.assert_array_equal(zeros.reshape(rows, -1, 4).sum(axis=2), 2, err_msg=str(key))


@pytest.mark.parametrize(
    ("method", "values"),
    spread(["magnitude", "wanda", "sparsegpt", "admm"], ["int8", "int4"], every=2),
)
def test_values_are_quantised_with_what_is_kept(llama, tmp_path, text, method, values):
    run_conversion(llama, tmp_path / "dst", settings=settings_of(text, method, values=values))
    run_conversion(llama, tmp_path / "exact", settings=settings_of(text, method))
    with endor.open(tmp_path / "dst") as checkpoint:
        layers = [record for record in checkpoint.manifest.records if record.name.startswith("layers.")]
        codecs = {
            tensor.codec.kind
            for record in layers
            for _, tensor in checkpoint.manifest.layout(record).tensors
            if isinstance(tensor, FieldLayout)
        }
        assert codecs == {values}
        assert checkpoint.manifest.made["settings"]["values"] == values
    rounded, exact = tensors_of(tmp_path / "dst"), tensors_of(tmp_path / "exact")
    first = ("layers.0", "mlp.down.weight")
    step = np.abs(exact[first]).max(axis=1, keepdims=True) / (127 if values == "int8" else 7)
    kept = rounded[first] != 0
    assert not any(np.signbit(array[array == 0]).any() for array in rounded.values())
    assert np.mean(kept) <= 0.5
    if method in ("magnitude", "wanda"):  # the others update what is kept
        assert np.all(np.abs(rounded[first] - exact[first]) <= 2.2 * step)  # clipped to 70 % at most
    for key in exact.keys() - matrices(exact).keys():
        np.testing.assert_array_equal(rounded[key], exact[key])


def test_owl_gives_layers_different_sparsities_of_the_mean_that_was_asked_for(llama, tmp_path, text):
    conversion = run_conversion(
        llama, tmp_path / "dst", settings=settings_of(text, "wanda", allocation="owl")
    )
    sparsities = conversion.manifest.made["sparsities"]
    assert len(set(sparsities.values())) == 2
    assert np.mean(list(sparsities.values())) == pytest.approx(0.5)
    zeros = [array == 0 for array in matrices(tensors_of(tmp_path / "dst")).values()]
    assert sum(map(np.sum, zeros)) / sum(map(np.size, zeros)) >= 0.5


def test_what_rounds_to_zero_in_the_dtype_is_no_negative_zero(tmp_path, text):
    tensors = random_tensors(CONFIGS["llama"])
    small = {name: array * 1e-7 if "mlp.up" in name else array for name, array in tensors.items()}
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in small.items()}
    files = {
        "config.json": json.dumps(CONFIGS["llama"]).encode(),
        "tokenizer.json": byte_tokenizer().encode(),
    }
    write_safetensors(tmp_path / "src", small.items(), infos=infos, files=files)
    run_conversion(tmp_path / "src", tmp_path / "dst", settings=settings_of(text, dtype="float16"))
    for key, array in matrices(tensors_of(tmp_path / "dst")).items():
        assert np.mean(array == 0) > (0.6 if "mlp.up" in key[1] else 0.49)
        assert not np.signbit(array[array == 0]).any()


def test_on_other_processors_an_interrupted_conversion_is_not_gone_on_with(
    llama, tmp_path, text, monkeypatch
):
    def interrupt(what, *_):
        if what == "measuring layers.1":
            raise Interrupted

    with pytest.raises(Interrupted):
        run_conversion(llama, tmp_path / "dst", settings=settings_of(text), progress=interrupt)
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: range(1000))
    with pytest.raises(ResumeError, match="computed by processors 1000"):
        run_conversion(llama, tmp_path / "dst", settings=settings_of(text))


def test_an_error_of_a_method_says_which_matrices(tmp_path, text):
    tensors = random_tensors(CONFIGS["llama"])
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {
        "config.json": json.dumps(CONFIGS["llama"]).encode(),
        "tokenizer.json": byte_tokenizer().encode(),
    }
    write_safetensors(tmp_path / "src", tensors.items(), infos=infos, files=files)
    said = r"^tensor 'model\.layers\.1\.mlp\.down_proj\.weight': pruning: got NaN"
    for settings in (settings_of(text, values="raw"), ConvertSettings(prune="magnitude", sparsity=0.5)):
        with pytest.raises(InvalidInputError, match=said):
            run_conversion(tmp_path / "src", tmp_path / "dst", settings=settings)


def test_an_error_behind_the_survey_says_which_matrices_too(llama, tmp_path, text, monkeypatch):
    def refuse(*_, **__):
        raise InvalidInputError("pruning", got="a", expected="b", fix="c")

    monkeypatch.setattr(calibrate, "pruned_matrices", refuse)
    said = r"^layers\.0 \(attention\.output\.weight\): pruning: got a, expected b; c"
    with pytest.raises(InvalidInputError, match=said):
        run_conversion(llama, tmp_path / "dst", settings=settings_of(text))


def test_a_file_to_calibrate_with_may_be_given_by_its_path_alone(llama, tmp_path, text):
    for name, given in (("a", Path(text)), ("b", endor.CalibrationText(str(text)))):
        with pytest.raises(InvalidInputError, match="7 blocks of 512"):  # so it was read, with the defaults
            endor.convert(llama, tmp_path / name, prune="wanda", sparsity=0.5, calibration=given)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(llama, tmp_path, text):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_conversion(llama, tmp_path / name, settings=settings_of(text, seed=seed))
    first, again, other = (matrices(tensors_of(tmp_path / name)) for name in "abc")
    for key, array in first.items():
        np.testing.assert_array_equal(array, again[key])
    assert any((array != other[key]).any() for key, array in first.items())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["wanda", "admm"])
def test_interrupted_anywhere_and_gone_on_with_it_gives_the_same_bytes(llama, tmp_path, text, method):
    others = {"values": "int8"} if method == "wanda" else {"target": "model"}
    settings = settings_of(text, method, allocation="owl", **others)
    calls = []
    run_conversion(llama, tmp_path / "whole", settings=settings, progress=lambda *now: calls.append(now))
    whole = contents(tmp_path / "whole")
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    # What takes no time counts for nothing.
    assert {done for what, done, _ in calls if what in ("encoding embedding", "encoding layers.0")} == {0}
    assert calls[-1][1] == calls[-1][2] > 0
    for stop in range(1, len(calls), len(calls) // 12):
        count = 0

        def interrupt(*_, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise Interrupted

        path = tmp_path / f"stopped{stop}"
        with pytest.raises(Interrupted):
            run_conversion(llama, path, settings=settings, progress=interrupt)
        again = run_conversion(llama, path, settings=settings)
        assert contents(path) == whole, calls[stop - 1]
        if calls[stop - 1][0] in ("measuring layers.1", "running layers.1", "encoding layers.1"):
            assert again.resumed_parts >= 2


def test_killed_in_the_second_layer_it_leaves_finished_parts_and_goes_on_to_the_same_bytes(tmp_path, text):
    source = write_tiny(tmp_path / "src", LLAMA, tokenizer=True)
    options = ["--prune", "wanda", "--calibration", text, "--calibration-blocks", "6", "--quiet"]
    command = [sys.executable, "-m", "endor_jax.cli.main", "convert", str(source), *options]
    command += ["--calibration-length", "24"]
    killed = subprocess.Popen([*command[:5], str(tmp_path / "dst"), *command[5:]])
    while not (tmp_path / "dst/parts/layers.1.0").exists():
        assert killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    left = {name.split("/")[0] for name in contents(tmp_path / "dst")}
    assert left <= {"endor.journal", "parts", "config.json", "tokenizer.json"}
    for name in ("dst", "whole"):
        subprocess.run([*command[:5], str(tmp_path / name), *command[5:]], check=True)
    assert contents(tmp_path / "dst") == contents(tmp_path / "whole")


def test_another_text_is_another_conversion(llama, tmp_path, text):
    calls = []

    def interrupt(what, *_):
        calls.append(what)
        if what == "measuring layers.1":
            raise Interrupted

    with pytest.raises(Interrupted):
        run_conversion(llama, tmp_path / "dst", settings=settings_of(text), progress=interrupt)
    with pytest.raises(ResumeError, match="calibration"):
        run_conversion(llama, tmp_path / "dst", settings=settings_of(None))


def test_the_survey_says_how_much_will_be_stored(llama, tmp_path, text):
    survey = survey_conversion(llama, tmp_path / "dst", settings=settings_of(text))
    conversion = run_conversion(llama, tmp_path / "dst", settings=settings_of(text))
    assert abs(conversion.manifest.stored_bytes / survey.expected.stored_bytes - 1) < 0.05


def test_a_source_without_tokenizer_cannot_be_calibrated(tmp_path, text):
    source = write_tiny(tmp_path / "src", CONFIGS["llama"])
    with pytest.raises(InvalidInputError, match=r"no tokenizer\.json"):
        run_conversion(source, tmp_path / "dst", settings=settings_of(text))
    assert not (tmp_path / "dst").exists()


def test_blocks_must_fit_the_model_and_the_text(llama, tmp_path, text):
    for calibration, said in (
        (CalibrationText(text, blocks=2, length=600), "at most the model's 512 positions"),
        (
            CalibrationText(text, blocks=200, length=24),
            r"tokens: 16\d blocks of 24, expected blocks 0 to 199",
        ),
    ):
        settings = ConvertSettings(prune="wanda", sparsity=0.5, calibration=calibration)
        with pytest.raises(InvalidInputError, match=said) as raised:
            run_conversion(llama, tmp_path / "dst", settings=settings)
    # How many tokens the text has depends on Python's version, whose it is; how many blocks that is does not.
    tokens, blocks = re.findall(r"[\d,]+", raised.value.got)[:2]
    assert int(tokens.replace(",", "")) // 24 == int(blocks)
