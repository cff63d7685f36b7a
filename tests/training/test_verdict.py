"""What a run says where it learned nothing."""

import pytest

from blockjax.training.verdict import verdict
from tests.tiny import tiny_config


def rows(pixels, untrained, *blocks):
    names = ("pixels", "untrained", *(f"block_{k}" for k in range(1, len(blocks) + 1)))
    return [
        {"features": name, "knn": knn, "linear": linear}
        for name, (knn, linear) in zip(names, (pixels, untrained, *blocks), strict=True)
    ]


def said(probes, tested=1000, **overrides):
    found = verdict(probes, tested, tiny_config(**overrides), epochs=12.8, images=3000)
    return "\n".join(found)


def test_a_run_that_learned_says_nothing():
    assert said(rows((0.4, 0.4), (0.4, 0.7), (0.5, 0.6), (0.3, 0.8))) == ""


def test_each_rival_that_is_not_beaten_is_named_with_both_figures():
    text = said(rows((0.131, 0.1), (0.085, 0.149), (0.09, 0.15), (0.088, 0.151)))
    assert "an untrained encoder in the linear probe (0.151 against 0.149)" in text
    assert "nor than an untrained encoder in the kNN (0.090 against 0.085)" in text
    assert "raw pixels in the kNN (0.090 against 0.131)" in text
    assert "raw pixels in the linear probe" not in text
    assert "on 1,000 test images" in text
    text = said(rows((0.131, 0.1), (0.085, 0.149), (0.3, 0.15), (0.2, 0.3)))
    assert text == ""


@pytest.mark.parametrize("tested, is_said", [(100, True), (10_000, False)])
def test_a_lead_must_be_more_than_chance(tested, is_said):
    probes = rows((0.2, 0.2), (0.5, 0.5), (0.55, 0.55))
    assert bool(said(probes, tested)) == is_said


def test_the_remedies_are_fields_of_this_run():
    nothing = rows((0.1, 0.1), (0.1, 0.1), (0.1, 0.1))
    text = said(nothing)
    assert "3,000 images was seen 12.8 times; --config.epochs=51 --config.steps=None" in text
    assert "--config context or --config rotation" in text
    assert "--config.decoder.fraction=1 (now 0.5)" in text
    text = said(nothing, objective="rotation", steps=None, epochs=3.0)
    assert "--config.epochs=51" in text and "steps" not in text
    assert "objective" not in text and "decoder" not in text
