import pytest

from course import presets
from course.errors import UsageError
from course.training import recipes


def test_overrides_are_read_as_their_type():
    r = recipes.find("vae", "demo", ["loop.lr=2e-3", "data.objects=1,3", "loss.kl=0.5", "minutes=1", "data.source=a/b", "seed=7"])
    assert r.loop.lr == 2e-3 and r.data.objects == (1, 3) and r.loss.kl == 0.5 and r.minutes == 1.0
    assert r.data.source == "a/b" and r.seed == r.loop.seed == 7
    assert recipes.find("ldm", "demo", ["loss.min_snr_gamma=5"]).loss.min_snr_gamma == 5.0
    assert recipes.find("ldm", "demo", ["loss.min_snr_gamma=none"]).loss.min_snr_gamma is None


@pytest.mark.parametrize("kind, name, change, said", [
    ("gan", "demo", [], "cannot train 'gan'; expected one of vae"),
    ("vae", "huge", [], "no recipe 'huge' for vae; expected one of demo"),
    ("vae", "demo", ["lr"], "key=value"),
    ("vae", "demo", ["loop.rl=1"], "no setting 'loop.rl'.*batch_size"),
    ("vae", "demo", ["loop.lr=fast"], "'fast' is no float"),
    ("vae", "demo", ["loop=1"], "is a group; set one of loop.batch_size"),
    ("vae", "demo", ["data.objects=1,2,3"], "is no tuple"), ("vae", "demo", ["minutes.x=1"], "has no parts")])
def test_misuse_names_what_is_known(kind, name, change, said):
    with pytest.raises(UsageError, match=said):
        recipes.find(kind, name, change)


def test_every_recipe_names_a_model_that_exists():
    for kind, named in recipes.RECIPES.items():
        for recipe in named.values():
            assert recipe.kind == kind and recipe.model in presets.PIPELINES and recipe.expected
            assert (presets.PIPELINES[recipe.model].vae is None) == (kind == "ddpm")
