"""Settings are checked when they are made, each error says what was expected."""

import pytest

from endor_jax.conversion.settings import CalibrationText, ConvertSettings
from endor_jax.errors import InvalidInputError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune": "lottery"}, r"prune: got 'lottery', expected none, magnitude, wanda, sparsegpt, admm"),
        ({"sparsity": 0.5}, r"sparsity: got 0.5 with prune='none'"),
        ({"prune": "magnitude"}, r"sparsity: got None with prune='magnitude'"),
        ({"prune": "magnitude", "sparsity": 1.0}, r"sparsity: got 1.0, expected 0 or more and below 1"),
        ({"prune": "magnitude", "sparsity": -0.1}, r"sparsity: got -0.1"),
        ({"prune": "magnitude", "sparsity": float("nan")}, r"sparsity: got nan"),
        ({"values": "packed:8"}, r"value codec: got 'packed:8'"),
        ({"values": "zip"}, r"value codec: got 'zip'"),
        ({"prune": "wanda", "sparsity": 0.5, "target": "model"}, r"calibration target: got 'model'"),
        ({"prune": "wanda", "sparsity": 0.5, "target": "moon"}, r"calibration target: got 'moon'"),
        ({"prune": "wanda", "sparsity": 0.5, "structure": "2:4"}, r"sparsity: got 0.5 .* structure='2:4'"),
        ({"prune": "wanda", "structure": "4:2"}, r"mask structure: got '4:2'"),
        ({"structure": "row"}, r"mask structure: got 'row' without pruning"),
        ({"allocation": "owl"}, r"sparsity allocation: got 'owl' without pruning"),
        ({"prune": "wanda", "sparsity": 0.5, "allocation": "pear"}, r"sparsity allocation: got 'pear'"),
        ({"prune": "wanda", "structure": "2:4", "allocation": "owl"}, r"got 'owl' with structure='2:4'"),
        (
            {"prune": "admm", "structure": "1:3", "values": "int8"},
            r"mask structure: got '1:3' with values='int8' and prune='admm'",
        ),
        ({"shards": 0}, r"shards: got 0, expected 1 or more"),
        ({"dtype": "float8_e4m3fn"}, r"dtype: got 'float8_e4m3fn', expected bfloat16, float16, float32"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        ConvertSettings(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prune": "magnitude", "sparsity": 0.0},
        {"prune": "magnitude", "sparsity": 0.999},
        {"prune": "wanda", "structure": "2:4"},
        {"prune": "admm", "sparsity": 0.5, "structure": "row", "allocation": "owl", "target": "model"},
        {"values": "int4"},
        {"shards": 64},
        {"values": "raw"},
        {"values": "packed"},
        {"values": "packed:7"},
        {"values": "auto", "dtype": "float16", "keep_negative_zero": True},
    ],
)
def test_usable_settings(settings):
    ConvertSettings(**settings)


def test_a_calibration_text_is_refused_if_it_cannot_be():
    for settings, message in (
        ({"blocks": 0}, "calibration blocks: got 0"),
        ({"length": 0}, "calibration length: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            CalibrationText(**settings)


def test_the_path_of_a_calibration_text_may_be_a_path(tmp_path):
    assert CalibrationText(tmp_path / "a.txt").path == str(tmp_path / "a.txt")
