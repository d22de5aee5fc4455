"""The published reference recipes, as the package carries them, give networks of the published size."""

import pytest

from toolchain.build_network import model_settings
from toolchain.cost import Cost, cost
from toolchain.graph import Graph
from toolchain.prune import Pruning, prune
from toolchain.ranks import Ranks
from toolchain.recipe import Recipe, read_recipe
from toolchain.recipe_stages import Prune, Tucker
from toolchain.scope import select
from toolchain.stages import read_model
from toolchain.tucker import decompose


def _after(recipe: Recipe, ranks: Ranks) -> Cost:
    """The size after the recipe's stages; ranks stand in place of the recipe's, which trained weights need."""
    graph: Graph = read_model(model_settings(recipe), {})[0]
    for entry in recipe.stages:
        settings = entry.settings
        assert isinstance(settings, Tucker | Prune)
        chosen = select(graph, settings.include, settings.exclude)
        if isinstance(settings, Tucker):
            graph = decompose(graph, chosen, ranks, pointwise=settings.pointwise).graph
        else:
            keys = ("ratio", "criterion", "cut", "policy", "multiple")
            graph = prune(graph, chosen, Pruning(**{key: getattr(settings, key) for key in keys})).graph
    return cost(graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable", "within", "mflops", "flops_within"),
    [
        # The trained weights, and with them the published ranks, are not public: their shares of the channels are.
        ("reference_compressed_1", 10.59e6, 0.05, 11459.69, 0.03),
        ("reference_compressed_2", 10.71e6, 0.02, 14442.96, 0.04),
    ],
)
def test_published_sizes(name: str, trainable: float, within: float, mflops: float, flops_within: float) -> None:
    found = _after(read_recipe(name).recipe, Ranks(vbmf=0.2, v=(0.05547, 0.02969)))
    assert found.trainable == pytest.approx(trainable, rel=within)
    assert found.flops == pytest.approx(mflops * 1e6, rel=flops_within)
    assert found.flops_unknown == ()
