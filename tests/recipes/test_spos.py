"""Single paths, budgets, scores and the search, against what they should be by hand."""

from __future__ import annotations

import copy
import inspect
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import netaugfx
from netaugfx.errors import InputError, PlanError
from netaugfx.plan import Config
from recipes.errors import SearchError
from recipes.netaug import NetAugTask
from recipes.spos import (
    SCORES,
    Budget,
    Candidate,
    Images,
    SinglePathTask,
    build_score,
    read_sizes,
    search,
)
from recipes.spos.budget import Ceiling
from recipes.spos.result import front
from recipes.spos.scores import top1
from recipes.tiny import tiny_mobilenet

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.recipes.test_training"])


def small() -> nn.Module:
    torch.manual_seed(0)
    return tiny_mobilenet(4, 2, channels=(4, 4, 6), strides=(1, 1, 2), expand_ratio=2, head=8)


def widened(**arguments: Any) -> netaugfx.WideModel:
    return netaugfx.widen(
        small(), example_inputs=(torch.zeros(2, 2, 8, 8),), verify=False, **arguments
    )


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Noise whose mean tells the label."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        labels = torch.randint(4, (16,), generator=generator)
        noise = torch.randn(16, 2, 8, 8, generator=generator)
        found.append((noise + labels[:, None, None, None], labels))
    return found


@pytest.fixture
def images() -> Images:
    return Images(batches(3, 1), batches(2, 2))


@pytest.fixture
def wide(images: Images) -> netaugfx.WideModel:
    """A supernet that has learnt a little, with momentum-free statistics of its own."""
    wide = widened()
    task = SinglePathTask(wide, F.cross_entropy)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.05)
    for _ in range(4):
        for x, y in images.train:
            optimizer.zero_grad()
            task(x, y)["loss"].backward()
            optimizer.step()
    optimizer.zero_grad()
    return wide


def nearness(target: Config, config: Config) -> float:
    """A score whose best config is `target`, and only that."""
    return -sum(abs(config[name] - n) / n for name, n in target.items())


# ------------------------------------------------------------------------------------- single paths


def test_a_step_trains_one_sampled_subnet(images: Images) -> None:
    wide = widened()
    x, y = images.train[0]
    by_hand, before = copy.deepcopy(wide), copy.deepcopy(wide.state_dict())
    config = SinglePathTask(by_hand, F.cross_entropy, seed=3).sample()
    assert config not in (wide.base_config, wide.max_config)
    F.cross_entropy(by_hand.at(config)(x), y).backward()
    task = SinglePathTask(wide, F.cross_entropy, seed=3)
    result = task(x, y)
    result["loss"].backward()
    assert torch.equal(result["output"], by_hand.at(config)(x))
    for (name, p), q in zip(wide.named_parameters(), by_hand.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name
    assert all(torch.equal(t, before[name]) for name, t in wide.state_dict().items())


def test_every_size_comes_equally_often_and_the_counts_say_so() -> None:
    task = SinglePathTask(widened(diversity={"stream": 2, "inner": 3}), F.cross_entropy)
    state = torch.get_rng_state()
    drawn = [task.sample() for _ in range(2000)]
    assert torch.equal(state, torch.get_rng_state())
    for name, counts in task.counts.items():
        assert counts == Counter(config[name] for config in drawn)
        assert sum(counts.values()) == 2000
    assert task.counts.keys() == task.wide.widths.keys()
    assert min(task.uniformity().values()) > 1e-4
    uneven = SinglePathTask(task.wide, F.cross_entropy, path_dropout=0.2)
    for _ in range(2000):
        uneven.sample()
    assert max(uneven.uniformity().values()) < 1e-6


def test_path_dropout_keeps_widths_at_their_base_size() -> None:
    task = SinglePathTask(widened(), F.cross_entropy, path_dropout=1.0)
    assert task.sample() == task.wide.base_config
    task.path_dropout = 0.4
    for _ in range(1500):
        task.sample()
    for name, counts in task.counts.items():
        share = counts[task.wide.widths[name].base] / 1501
        assert abs(share - (0.4 + 0.6 / 3)) < 0.06, name


@pytest.mark.parametrize("measure", ["macs", "parameters"])
def test_a_ceiling_is_never_exceeded_and_nearly_reached(measure: str) -> None:
    wide = widened()
    task = SinglePathTask(wide, F.cross_entropy, ceiling=Budget(2.5, measure))
    ceiling = Ceiling(wide, Budget(2.5, measure))
    costs = [ceiling.cost(task.sample()) / ceiling.base_cost for _ in range(100)]
    assert 2.2 < max(costs) <= 2.5
    with pytest.raises(SearchError, match=r"cheapest config, the base, costs [\d,]+"):
        SinglePathTask(wide, F.cross_entropy, ceiling=Budget(0.9, measure))


def test_parameters_are_those_of_the_plain_subnet() -> None:
    wide = widened()
    ceiling = Ceiling(wide, measure="parameters")
    for config in (wide.base_config, wide.max_config, wide.sample()):
        plain = netaugfx.extract(wide, config)
        assert ceiling.cost(config) == sum(p.numel() for p in plain.parameters())


def test_sampling_and_counts_go_on_from_the_state() -> None:
    wide = widened()
    one, two = (SinglePathTask(wide, F.cross_entropy, seed=seed) for seed in (0, 9))
    for _ in range(5):
        one.sample()
    two.load_task_state(copy.deepcopy(one.get_task_state()))
    assert two.counts == one.counts
    assert [one.sample() for _ in range(5)] == [two.sample() for _ in range(5)]
    assert two.counts == one.counts
    with pytest.raises(InputError, match="task state"):
        two.load_task_state({"generator": one.generator.get_state()})


def test_what_a_single_path_task_refuses() -> None:
    with pytest.raises(InputError, match="expects a widened model, got TinyMobileNet"):
        SinglePathTask(small(), F.cross_entropy)
    with pytest.raises(PlanError, match="Nothing to sample: no width of kind stream or inner"):
        SinglePathTask(widened(factor=1), F.cross_entropy)
    with pytest.raises(ValueError, match="path_dropout"):
        SinglePathTask(widened(), F.cross_entropy, path_dropout=1.5)


# ------------------------------------------------------------------------------------------ budgets


def test_budgets_by_their_text() -> None:
    assert Budget.of("3.0x") == Budget.of(3.0) == Budget(3.0, "macs", True)
    assert Budget.of("2.5M", "parameters") == Budget(2.5e6, "parameters", False)
    assert Budget.of(" 800k ") == Budget(8e5, relative=False)
    assert str(Budget.of("3.0x")) == "3x macs"
    for wrong in ("3.0 x", "x", "-1x", "", "three"):
        with pytest.raises(SearchError, match=r"A budget is a multiple of the base, as 3.0x"):
            Budget.of(wrong)
    for number in (0, -1.0, math.inf, math.nan, True):
        with pytest.raises(SearchError, match="number above 0"):
            Budget.of(number)
    with pytest.raises(SearchError, match="'watts' came"):
        Budget(2.0, "watts")


# ------------------------------------------------------------------------------------------- scores


def state_of(wide: netaugfx.WideModel) -> dict[str, Any]:
    """All that a score might change."""
    return {
        "tensors": {name: t.clone() for name, t in wide.state_dict().items()},
        "gradients": [p.grad for p in wide.parameters()],
        "flags": [m.training for m in [wide, wide.base, *wide.modules()]],
        "statistics": {c: dict(found) for c, found in wide.statistics.items()},
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("training", [True, False])
def test_a_score_is_repeatable_and_leaves_the_model_as_it_was(
    wide: netaugfx.WideModel, images: Images, name: str, training: bool
) -> None:
    wide.train(training)
    mixed = wide.sample()
    wide.recalibrate(mixed, [x for x, _ in images.train[:1]])
    before = state_of(wide)
    settings = {"epochs": 4, "lr": 0.05} if name == "base" else {}
    score = build_score(name, wide, images, **settings)
    configs = (wide.base_config, mixed, wide.max_config)
    values = [score(config) for config in configs]
    assert values == [score(config) for config in configs]
    assert len(set(values)) > 1
    torch.testing.assert_close(state_of(wide), before, rtol=0, atol=0)
    json.dumps(score.settings())


def test_subnet_is_the_accuracy_of_the_plain_network_with_its_own_statistics(
    wide: netaugfx.WideModel, images: Images
) -> None:
    score = build_score("subnet", wide, images)
    for config in (wide.base_config, wide.max_config, wide.sample()):
        plain = netaugfx.extract(wide, config)
        update_bn([x for x, _ in images.train], plain)
        assert score(config) == top1(plain.eval(), images.held_out)
    stale = build_score("subnet", wide, images, recalibrate=0)(wide.max_config)
    assert stale == top1(netaugfx.extract(wide, wide.max_config).eval(), images.held_out)


def test_base_is_the_accuracy_after_netaug_with_that_maximum(
    wide: netaugfx.WideModel, images: Images
) -> None:
    score = build_score("base", wide, images, epochs=2, lr=0.05)
    narrow = wide.plan.config({"head.0": 16})  # one width, of which one size is left to sample
    for config in (narrow, wide.base_config):
        by_hand = copy.deepcopy(wide).train()
        task = NetAugTask(
            by_hand,
            nn.CrossEntropyLoss(label_smoothing=0.1),
            sampler=lambda *_: narrow,
            kinds=("stream", "inner") if config == narrow else (),
        )
        optimizer = torch.optim.SGD(
            by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=4e-5, nesterov=True
        )
        for _ in range(2):
            for x, y in images.train:
                optimizer.zero_grad()
                task.backward(x, y)
                optimizer.step()
        expected = top1(netaugfx.extract_base(by_hand).eval(), images.held_out)
        assert score(config) == expected


def test_base_never_samples_beyond_its_maximum(
    wide: netaugfx.WideModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    run = netaugfx.WideModel.run

    def watched(self: netaugfx.WideModel, config: Config, *arguments: Any) -> Any:
        seen.append(config)
        return run(self, config, *arguments)

    monkeypatch.setattr(netaugfx.WideModel, "run", watched)
    limit = wide.plan.config({"head.0": 16, "blocks.1.layers.0": 24})
    build_score("base", wide, images, epochs=8)(limit)
    assert {c["head.0"] for c in seen} == {8, 16}
    assert {c["blocks.1.layers.0"] for c in seen} == {8, 16, 24}
    assert all(c[name] <= n for c in seen for name, n in limit.items())


def test_alignment_is_the_cosine_of_the_gradients(wide: netaugfx.WideModel, images: Images) -> None:
    def gradient(config: Config, some: Any) -> Tensor:
        model = copy.deepcopy(wide).train()
        for x, y in some:
            F.cross_entropy(model.at(config)(x), y, label_smoothing=0.1).backward()
        return torch.cat([p.grad.flatten() for p in model.base_parameters()])

    score = build_score("alignment", wide, images, batches=2)
    for config in (wide.base_config, wide.max_config):
        a = gradient(wide.base_config, images.held_out[:2])
        b = gradient(config, images.train[:2])
        assert score(config) == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
    same = Images(images.train, images.train)
    assert build_score("alignment", wide, same)(wide.base_config) == pytest.approx(1, abs=1e-6)


def test_scores_need_images_and_a_name(wide: netaugfx.WideModel, images: Images) -> None:
    with pytest.raises(SearchError, match="no held_out images"):
        Images(batches(1, 0), [])
    with pytest.raises(SearchError, match="no held_out images"):
        Images(batches(1, 0), [(torch.zeros(0, 2, 8, 8), torch.zeros(0))])
    with pytest.raises(SearchError, match="There is no score 'subnets'; there are subnet, base"):
        search(wide, "subnets", images=images)
    with pytest.raises(SearchError, match="'base' needs images"):
        search(wide, "base")


# ------------------------------------------------------------------------------------------- search


def test_the_defaults_are_the_papers() -> None:
    defaults = {n: p.default for n, p in inspect.signature(search).parameters.items()}
    assert (defaults["population"], defaults["top"], defaults["mutation"]) == (50, 10, 0.1)
    assert (defaults["trials"], defaults["method"]) == (50 * 20, "evolution")


@pytest.mark.parametrize("method", ["evolution", "nsga2", "random"])
def test_a_search_keeps_to_its_constraint_and_repeats_nothing(method: str) -> None:
    wide = widened()
    limit = 2.5 * wide.macs({})
    seen: list[Config] = []

    def score(config: Config) -> float:
        seen.append(config)
        return float(config["head.0"])

    found = search(wide, score, constraint="2.5x", trials=60, population=10, method=method)
    assert len(seen) == len(set(seen)) == len(found.candidates) == 60
    assert all(wide.macs(config) <= limit for config in seen)
    assert found.best.value == max(c["head.0"] for c in seen) == found.best_config["head.0"]
    cheapest = min(wide.macs(c) for c in seen if c["head.0"] == found.best.value)
    assert found.best.cost == cheapest
    assert len(found.study.directions) == (2 if method == "nsga2" else 1)


def test_evolution_comes_nearer_than_chance() -> None:
    wide = widened(diversity=6)
    target = wide.sample(torch.Generator().manual_seed(0))
    best = {
        method: search(
            wide, partial(nearness, target), trials=150, population=20, top=5, method=method
        ).best.value
        for method in ("evolution", "nsga2", "random")
    }
    assert best["evolution"] > best["random"]
    assert best["nsga2"] > best["random"]


def test_a_generation_is_half_mutations_and_half_crossovers_of_the_best() -> None:
    wide = widened(diversity=4)
    found = search(wide, lambda c: sum(c.values()), trials=24, population=8, top=2, mutation=0.0)
    first, second = found.candidates[:8], found.candidates[8:16]
    a, b = sorted(first, key=lambda each: -each.value)[:2]
    crossed = [all(n in (a.config[w], b.config[w]) for w, n in c.config.items()) for c in second]
    assert sum(crossed) >= 4  # without mutation, a mutated parent is no new config: a uniform draw
    found = search(wide, lambda c: sum(c.values()), trials=24, population=8, top=1, mutation=0.3)
    first, second = found.candidates[:8], found.candidates[8:12]
    parent = max(first, key=lambda each: each.value).config
    same = [sum(c.config[w] == n for w, n in parent.items()) for c in second]
    assert all(0 < each < len(parent) for each in same)


def test_a_small_space_is_searched_once_and_whole() -> None:
    wide = widened(max_config={"head.0": 24, "stem.0": 8})
    found = search(wide, lambda c: float(sum(c.values())), trials=1000)
    assert len(found.candidates) == 9
    assert found.best_config == wide.max_config
    found = search(wide, lambda c: c["stem.0"], trials=1000, constraint=lambda c: c["head.0"] > 8)
    assert len(found.candidates) == 6


@pytest.mark.parametrize("method", ["evolution", "nsga2", "random"])
def test_a_study_goes_on_as_if_it_had_never_stopped(method: str, tmp_path: Path) -> None:
    wide = widened(diversity=4)
    target = wide.sample()
    options: dict[str, Any] = {"population": 5, "method": method, "constraint": "4x"}
    whole = search(wide, partial(nearness, target), trials=15, **options)
    for trials in (8, 15):
        file = tmp_path / "studies.db"
        found = search(wide, partial(nearness, target), trials=trials, storage=file, **options)
    configs = [each.config for each in found.candidates]
    assert configs == [each.config for each in whole.candidates]
    assert found.front == whole.front or [c.config for c in found.front] == [
        c.config for c in whole.front
    ]
    held = optuna.load_study(
        study_name=method, storage=f"sqlite:///{file}"
    )  # as the dashboard does
    assert len(held.trials) == 15
    assert held.trials[0].params == dict(configs[0])


def marked(mark: Path, config: Config) -> float:
    with open(mark, "a") as marks:
        marks.write(".")
    time.sleep(0.02)
    return float(sum(config.values()))


def share(file: Path, mark: Path) -> None:
    """A process that evaluates what is left of forty candidates, and marks each."""
    torch.set_num_threads(1)
    score = partial(marked, mark)
    search(widened(diversity=4), score, trials=40, population=8, storage=file)


def test_processes_share_a_study_and_one_that_is_killed_is_missed_by_none(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"

    def start(name: str) -> Any:
        process = FORKSERVER.Process(target=share, args=(file, tmp_path / name))
        process.start()
        return process

    def evaluated(name: str) -> int:
        return len((tmp_path / name).read_text()) if (tmp_path / name).exists() else 0

    killed = start("killed")
    while killed.is_alive() and evaluated("killed") < 5:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    done = evaluated("killed")
    assert 5 <= done < 35
    both = [start("one"), start("two")]
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [0, 0]
    assert min(evaluated("one"), evaluated("two")) > 0
    # the candidate under way at the kill is lost, and two may finish the last one at once
    assert 40 <= done + evaluated("one") + evaluated("two") <= 42
    found = search(widened(diversity=4), marked, trials=40, population=8, storage=file)
    assert 40 <= len(found.candidates) <= 41
    assert not found.failed


def test_a_candidate_that_fails_is_marked_and_the_study_goes_on(tmp_path: Path) -> None:
    wide = widened()
    calls = []

    def score(config: Config) -> float:
        calls.append(config)
        if len(calls) % 3 == 1:
            return math.nan
        if len(calls) % 3 == 2:
            raise RuntimeError("out of memory")
        return 1.0

    told: list[Any] = []
    found = search(
        wide, score, trials=12, population=4, storage=tmp_path / "s.db", told=lambda *x: told.append(x)
    )  # fmt: skip
    assert len(calls) == 12
    assert len(found.candidates) == 4
    assert Counter(found.failed.values()) == {
        "SearchError: its score is nan": 4,
        "RuntimeError: out of memory": 4,
    }
    assert [number for number, _, _ in told] == list(range(1, 13))
    assert sum(isinstance(each, Candidate) for _, each, _ in told) == 4
    assert [best for _, _, best in told] == [None] * 3 + [1.0] * 9
    states = Counter(trial.state.name for trial in found.study.trials)
    assert states == {"COMPLETE": 4, "FAIL": 8}


def test_where_every_candidate_fails_the_search_says_why() -> None:
    with pytest.raises(SearchError, match=r"All of the first 10 candidates have failed.*is nan"):
        search(widened(), lambda _: math.nan, trials=50)
    with pytest.raises(SearchError, match=r"All of the first 3 candidates have failed"):
        search(widened(), lambda _: math.nan, trials=3)


def test_another_score_or_other_images_are_another_search(tmp_path: Path) -> None:
    wide, file = widened(), tmp_path / "s.db"

    def constant(value: float) -> Any:
        def score(_: Config) -> float:
            return value

        return score

    search(wide, constant(1.0), trials=2, storage=file)
    search(wide, constant(1.0), trials=3, storage=file)  # the same code goes on
    with pytest.raises(
        SearchError, match=r"another search.*its score are .*or from Python another name"
    ):
        search(wide, lambda _: 2.0, trials=3, storage=file)
    search(wide, lambda _: 2.0, trials=3, storage=file, name="mine")
    images, labels = torch.rand(4, 2, 8, 8), torch.zeros(4, dtype=torch.long)
    settings = {"trials": 2, "storage": file, "name": "named", "recalibrate": 0}
    search(wide, "subnet", images=Images(((images, labels),), ((images, labels),)), **settings)
    for others in ((images + 1, labels), (images, labels + 1), (images[:3], labels[:3])):
        with pytest.raises(SearchError, match="its held_out are"):
            search(wide, "subnet", images=Images(((images, labels),), (others,)), **settings)


def test_the_fingerprint_of_a_score_is_the_same_in_every_process() -> None:
    source = (
        "from recipes.spos.study import fingerprint\n"
        "def score(c): return 1.0 if 'a' in {'a', 'b', 'c', 'd'} else len([x for x in c])\n"
        "print(fingerprint(score))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", source],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_what_is_no_search(tmp_path: Path) -> None:
    wide = widened()
    with pytest.raises(SearchError, match="needs a WideModel, got TinyMobileNet"):
        search(tiny_mobilenet(), lambda _: 1.0)  # type: ignore[arg-type]
    with pytest.raises(SearchError, match=r"evaluate is a function .*; 5 came"):
        search(wide, 5)  # type: ignore[arg-type]
    with pytest.raises(SearchError, match=r"images is a recipes.spos.Images, got list"):
        search(wide, "subnet", images=[])  # type: ignore[arg-type]
    with pytest.raises(SearchError, match=r"whole numbers.*'5'"):
        search(wide, lambda _: 1.0, trials="5")  # type: ignore[arg-type]


def test_a_stop_by_hand_is_no_failed_candidate(tmp_path: Path) -> None:
    stopped = []

    def score(_: Config) -> float:
        if not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return 1.0

    wide, file = widened(), tmp_path / "s.db"
    with pytest.raises(KeyboardInterrupt):
        search(wide, score, trials=5, storage=file)
    found = search(wide, score, trials=5, storage=file)
    assert len(found.candidates) == 5
    assert not found.failed


def test_nothing_to_search_and_nothing_that_meets_the_constraint() -> None:
    wide = widened()
    one = lambda _: 1.0  # noqa: E731
    with pytest.raises(SearchError, match=rf"cheapest config, the base, costs {wide.macs({}):,}"):
        search(wide, one, constraint="0.5x")
    with pytest.raises(SearchError, match=r"none of the 243 configs does; the cheapest.*costs"):
        search(wide, one, constraint=lambda _: False)
    many = widened(diversity=9)
    with pytest.raises(SearchError, match=r"1,000 uniform draws did not, and the cheapest.*either"):
        search(many, one, constraint=lambda _: False)
    with pytest.raises(SearchError, match="There is nothing to search: no width of kind stream"):
        search(widened(factor=1), one)
    inner = widened(factor={"stream": 1, "inner": 2})
    with pytest.raises(SearchError, match="no width of kind stream can grow"):
        search(inner, one, kinds="stream")
    with pytest.raises(SearchError, match="'hill' came"):
        search(wide, one, method="hill")
    with pytest.raises(SearchError, match="No width has the kind 'outer'"):
        search(wide, one, kinds="outer")
    with pytest.raises(SearchError, match="trials and top are from 1 on"):
        search(wide, one, trials=0)


def test_a_study_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    file, score = tmp_path / "s.db", lambda c: float(sum(c.values()))
    wide = widened()
    search(wide, score, trials=2, storage=file)
    held = len(optuna.load_study(study_name="evolution", storage=f"sqlite:///{file}").trials)
    with pytest.raises(SearchError, match=r"holds another model by the name 'evolution'.*widths"):
        search(widened(diversity=3), score, trials=4, storage=file)
    with pytest.raises(SearchError, match="its seed are 0 there and 1 here"):
        search(wide, score, trials=4, storage=file, seed=1)
    other = widened()
    with torch.no_grad():
        next(other.augmented_parameters()).add_(1)
    with pytest.raises(SearchError, match="holds a search of other weights"):
        search(other, score, trials=4, storage=file)
    study = optuna.load_study(study_name="evolution", storage=f"sqlite:///{file}")
    assert len(study.trials) == held == 2
    assert len(search(wide, score, trials=4, storage=file, seed=1, name="again").candidates) == 4
    (tmp_path / "text.db").write_text("no study")
    with pytest.raises(SearchError, match=r"text\.db cannot be used as a study file"):
        search(wide, score, trials=2, storage=tmp_path / "text.db")
    with pytest.raises(SearchError, match="cannot be used as a study file"):
        search(wide, score, trials=2, storage=tmp_path / "nowhere" / "s.db")


def test_the_global_random_state_stays(wide: netaugfx.WideModel, images: Images) -> None:
    before = torch.get_rng_state(), random.getstate()
    for method in ("evolution", "nsga2"):
        search(wide, "subnet", images=images, trials=6, population=3, method=method)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


# ------------------------------------------------------------------------------------- what is found


def test_the_config_that_is_found_is_what_widen_grows_to(tmp_path: Path) -> None:
    found = search(widened(), lambda c: float(c["head.0"] - c["stem.0"]), trials=40)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(dict(found.best_config)))
    again = netaugfx.widen(
        small(), max_config=read_sizes(file), example_inputs=(torch.zeros(2, 2, 8, 8),)
    )
    assert again.max_config == found.best_config
    assert all(w.choices[-1] == found.best_config[w.name] for w in again.plan.widths)
    for text, message in {
        "[1]": 'expected {"WIDTH": SIZE',
        '{"head.0": 2.5}': 'expected {"WIDTH": SIZE',
        "{": "does not read as JSON",
    }.items():
        file.write_text(text)
        with pytest.raises(SearchError, match=message):
            read_sizes(file)
    with pytest.raises(SearchError, match="cannot be read"):
        read_sizes(tmp_path / "none.json")


def test_importance_finds_the_width_that_decides() -> None:
    wide = widened()
    found = search(wide, lambda c: float(c["head.0"]), trials=100, method="random")
    importance = found.importance()
    assert next(iter(importance)) == "head.0"
    assert importance["head.0"] > 0.8
    assert sum(importance.values()) == pytest.approx(1)
    assert search(wide, lambda c: 1.0, trials=5).importance() == {}
    described = json.loads(json.dumps(found.described()))
    assert described["best"]["config"] == dict(found.best_config)


def test_the_front_is_what_nothing_beats() -> None:
    def made(value: float, cost: float) -> Candidate:
        return Candidate(0, Config({}), value, cost, 0.0)

    points = [made(1, 1), made(3, 2), made(2, 3), made(3, 4), made(5, 5), made(0, 1)]
    assert front(points) == (made(1, 1), made(3, 2), made(5, 5))
