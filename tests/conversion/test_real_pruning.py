"""What calibration is for, on a real model: stories15M writes the text it is calibrated and scored with."""

import pytest

import endor_jax as endor
from endor_jax.conversion.settings import CalibrationText
from endor_jax.errors import MissingDependencyError
from endor_jax.evaluate.perplexity import perplexity_of_blocks
from endor_jax.generate.sampling import Sampler
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus

pytestmark = [pytest.mark.reference, pytest.mark.slow]
LENGTH, CALIBRATION, SCORED = 64, 16, 8
BEGINNINGS = [
    f"{when} {who}"
    for when in ("Once upon a time,", "One day,", "At night,", "In the morning,")
    for who in ("a dog", "a girl", "the king", "Tom", "Lily", "a bird", "the sun", "a tree")
]
"""Of 32 different stories: with one seed the same beginning gives the same story."""

METHODS: dict[str, dict[str, str]] = {
    "none": {},
    "magnitude": {"prune": "magnitude"},
    "wanda": {"prune": "wanda"},
    "sparsegpt": {"prune": "sparsegpt"},
    "admm": {"prune": "admm", "target": "model"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Perplexity by method, at 60 % zeros."""
    from tests.real_models import stories15m

    try:
        source = stories15m()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    work = tmp_path_factory.mktemp("stories")
    endor.convert(source, work / "none")
    text = work / "stories.txt"
    with endor.load(work / "none", context=128, batch=32) as model:
        told = model.complete_batch(BEGINNINGS, max_tokens=64, sampler=Sampler(temperature=1.0, seed=1))
        text.write_text("\n\n".join(completion.text for _, completion in told))
    found = {}
    for method, settings in METHODS.items():
        if method != "none":
            calibration = CalibrationText(str(text), blocks=CALIBRATION, length=LENGTH)
            # In one codec: the same programs score all four.
            settings = {**settings, "sparsity": 0.6, "values": "raw"}
            endor.convert(source, work / method, **settings, calibration=calibration)
        with endor.load(work / method, context=128, batch=8) as model:
            ids = model.encode(read_corpus(str(text)))
            blocks = shuffled_blocks(ids, LENGTH, seed=0, first=CALIBRATION, count=SCORED)
            found[method] = perplexity_of_blocks(model, blocks).value
    return found


def test_the_more_a_method_knows_the_less_a_model_loses(models):
    order = ["none", "admm", "sparsegpt", "wanda", "magnitude"]
    assert sorted(models, key=lambda method: models[method]) == order, models
    assert models["sparsegpt"] / models["none"] < (models["magnitude"] / models["none"]) ** 0.5, models
