"""What a configuration may make of a model's constructor: no more than the weights' file justifies."""

import cProfile
import resource
import sys

import pytest
import torch
from torch import nn

from fathom.artifact import load
from fathom.artifact.rebuild import Allowance
from fathom.core import catalog
from fathom.core.errors import ArtifactError, ConfigError

from .conftest import objective, write

MEBIBYTE = 1 << 20

HUGE = {
    "ones": lambda: torch.ones(100_000, 100_000),
    "full": lambda: torch.full((10**5, 10**6), 1.0),
    "drawn": lambda: torch.rand(10**5, 10**6, generator=torch.Generator()),
    "linear": lambda: nn.Linear(10**6, 10**6),
    "embedding": lambda: nn.Embedding(10**9, 10**3),
    "recurrent": lambda: nn.LSTM(10**5, 10**5),
    "parameter": lambda: nn.Parameter(torch.empty(10**5, 10**6)),
    "repeated": lambda: torch.ones(8).repeat(10**9, 4),
    "copied": lambda: torch.empty(1).expand(10**12).clone(),
    "grown": lambda: torch.empty(1).resize_(10**10).zero_(),
    "outer": lambda: torch.outer(torch.ones(10**5), torch.ones(10**5)),
    "differences": lambda: torch.ones(10**5)[None] - torch.ones(10**5)[:, None],
    "padded": lambda: nn.functional.pad(torch.ones(4), (0, 10**10)),
    "joined": lambda: torch.cat([torch.ones(10**6)] * 1000),
    "in small steps": lambda: [torch.ones(10**6) for _ in range(10**6)],
    "many layers": lambda: [nn.Linear(2, 2) for _ in range(10**9)],
    "many layers without weights": lambda: [nn.Dropout() for _ in range(10**9)],
}


@pytest.mark.parametrize("case", HUGE)
def test_what_goes_beyond_the_allowance_is_stopped_before_it_is_made(case):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match="far larger model"), Allowance(64 * MEBIBYTE, 100_000):
        HUGE[case]()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    assert sys.getprofile() is None


def test_what_is_disposed_of_meanwhile_does_not_end_the_count():
    class Parting:
        def __del__(self):
            for _ in range(2000):
                self.wave()

        def wave(self):
            pass

    with pytest.raises(ArtifactError, match="far larger model"), Allowance(64 * MEBIBYTE, 1000):
        Parting()  # more calls than are allowed, where nothing can be raised
        for _ in range(10**5):
            nn.Dropout()
    assert sys.getprofile() is None


@pytest.mark.parametrize("name", catalog.files("models"))
def test_every_model_stays_far_within_its_allowance(name):
    entry = catalog.find("models", name)
    torch.manual_seed(0)
    plain = entry.module.build(entry.config, entry.module.example()).state_dict()
    torch.manual_seed(0)
    size = sum(t.numel() * t.element_size() for t in plain.values())
    allowance = Allowance(4 * size + 128 * MEBIBYTE, 2_500 * len(plain) + 500_000)  # half of what loading allows
    with allowance:
        bounded = entry.module.build(entry.config, entry.module.example()).state_dict()
    assert list(bounded) == list(plain)
    assert all(torch.equal(bounded[key], value) for key, value in plain.items())  # and it changes nothing


def test_a_profiler_at_work_keeps_its_place(folder):
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        assert load(folder)
        with pytest.raises(ArtifactError), Allowance(MEBIBYTE, 1000):
            torch.ones(10**9)
    finally:
        profiler.disable()
    assert any("rebuild" in str(entry.code) for entry in profiler.getstats())


def test_a_configuration_that_could_not_be_loaded_is_not_saved(tmp_path):
    part, goal, module = objective()
    config = {"width": 8, "depth": 2**40}
    with pytest.raises(ConfigError, match="whole numbers go up to"):
        write(tmp_path / "m", model={"name": part.name, "config": config}, objective=goal, module=module)
    assert not (tmp_path / "m").exists()
