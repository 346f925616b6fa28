"""Learning from attacked images: the published losses and their gradients, and training alone, together and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe import models
from kdpipe.distil.adversary import PGD, Adversary, Robust, RobustLoss
from kdpipe.distil.losses import make, parse
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.rotation import Rotation
from kdpipe.distil.signals import SignalTerms, settle
from kdpipe.errors import RunError
from kdpipe.models import Preset
from kdpipe.testing.doubles import Dropping, IndexedTargets, StopAfter, differences, small_network
from kdpipe.training.batches import Batch
from kdpipe.training.checkpoint import State
from kdpipe.training.loop import train_together
from kdpipe.training.runs import RunDirectory
from kdpipe.training.trainee import Student
from kdpipe.views import SecondLabels
from tests import students
from tests.students import ORDER, SETTINGS, digits, renderer, student

N, CLASSES = 8, 5
ATTACK = PGD(8 / 255, 2)
PRESET = Preset(8, 8, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
MEAN, STD = (torch.tensor(each).view(1, 3, 1, 1) for each in (PRESET.mean, PRESET.std))
ROBUST: tuple[RobustLoss, ...] = ("ard", "rslad")


def _network() -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(288, CLASSES),
    )


def _batch(labels: list[int] | None = None, second: SecondLabels | None = None, *, taught: bool = True) -> Batch:
    drawn = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (N, 3, 8, 8), generator=drawn, dtype=torch.uint8)
    wanted = torch.tensor(labels or [0, 1, 2, 3, 4, 0, 1, 2])
    soft_targets = 3 * torch.randn(N, CLASSES, generator=drawn) if taught else None
    return Batch((pixels,), wanted, second, soft_targets, {})


def _distillation(kd_weight: float, ce_weight: float) -> Distillation:
    return Distillation(make("kd", temperature=2.0), kd_weight=kd_weight, ce_weight=ce_weight)


def _answer(
    network: torch.nn.Module,
    batch: Batch,
    robust: Robust | None,
    distillation: Distillation | None = None,
    *,
    smoothing: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    adversary = None if robust is None else Adversary(robust, network, PRESET)
    objective = DistillationObjective(PRESET, distillation, label_smoothing=smoothing, adversary=adversary)
    objective.begin(0, 1)
    torch.manual_seed(9)
    return objective(network, batch, batch.pixels[0])


def _attacked(
    network: torch.nn.Module, batch: Batch, harm: Callable[[torch.Tensor], torch.Tensor], attack: PGD = ATTACK
) -> torch.Tensor:
    """Return normalized attacked images, by a plain loop from the same start."""
    judge = copy.deepcopy(network).eval()
    images = batch.pixels[0].float() / 255
    torch.manual_seed(9)
    moved = (images + attack.epsilon * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(attack.steps):
        moved = moved.detach().requires_grad_()
        harm(judge((moved - MEAN) / STD)).backward()
        moved = moved + 2.5 * attack.epsilon / attack.steps * moved.grad.sign()
        moved = (images + (moved - images).clamp(-attack.epsilon, attack.epsilon)).clamp(0, 1)
    return ((moved - MEAN) / STD).detach()


def _kl(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the sum over the rows."""
    ours, theirs = (F.softmax(each / temperature, dim=1) for each in (logits, targets))
    return (theirs * (theirs.log() - ours.log())).sum()


def _assert_gradients(network: torch.nn.Module, expected: torch.nn.Module) -> None:
    for (name, mine), other in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name, rtol=1e-4, atol=1e-6)
    for (name, mine), other in zip(network.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


@pytest.mark.parametrize("loss", ROBUST)
def test_the_published_loss_and_its_gradient(loss: RobustLoss) -> None:
    network, plain, batch = _network(), _network(), _batch()
    logits, terms = _answer(network, batch, Robust(ATTACK, loss), _distillation(0.7, 0.2))
    terms["loss"].backward()

    targets = batch.soft_targets
    assert targets is not None
    if loss == "ard":
        images = _attacked(plain, batch, lambda shown: F.cross_entropy(shown, batch.labels, reduction="sum"))
    else:
        images = _attacked(plain, batch, lambda shown: _kl(shown, targets, 1.0))
    clean, attacked = plain((batch.pixels[0].float() / 255 - MEAN) / STD), plain(images)
    of_attacked, of_clean = (4 * _kl(each, targets, 2.0) / N for each in (attacked, clean))
    kd = of_attacked if loss == "ard" else 5 / 6 * of_attacked + 1 / 6 * of_clean
    ce = F.cross_entropy(clean, batch.labels)
    (0.7 * kd + 0.2 * ce).backward()
    torch.testing.assert_close(logits, clean)
    torch.testing.assert_close(terms["kd"], kd)
    torch.testing.assert_close(terms["ce"], ce)
    assert terms["adversarial_top1"] == (attacked.argmax(1) == batch.labels).float().mean()
    _assert_gradients(network, plain)


def test_adversarial_training_and_its_gradient() -> None:
    """On attacked images alone: batch norm sees no others. The attack takes labels as they are."""
    network, plain, batch = _network(), _network(), _batch(taught=False)
    logits, terms = _answer(network, batch, Robust(ATTACK), smoothing=0.1)
    terms["loss"].backward()

    attacked = plain(_attacked(plain, batch, lambda shown: F.cross_entropy(shown, batch.labels)))
    ce = F.cross_entropy(attacked, batch.labels, label_smoothing=0.1)
    ce.backward()
    torch.testing.assert_close(logits, attacked)
    torch.testing.assert_close(terms["ce"], ce)
    assert terms["loss"] is terms["ce"]
    assert set(terms) == {"ce", "loss", "adversarial_top1"}
    _assert_gradients(network, plain)


def test_a_student_that_is_not_taught_does_not_look_at_the_others_soft_targets() -> None:
    with_targets, without = (_answer(_network(), _batch(taught=taught), Robust(ATTACK)) for taught in (True, False))
    assert torch.equal(with_targets[0], without[0])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("loss", ROBUST)
def test_the_attack_on_samples_without_a_label(loss: RobustLoss, mixed: bool) -> None:
    """Their KL to the soft targets is raised; of a mixed image one label is enough to be led away from."""
    labels, others = [0, -1, 2, -1, 4, 0, -1, 2], np.array([1, -1, -1, 3, 0, 1, -1, -1], dtype=np.int32)
    own_share = np.linspace(0.2, 0.9, N, dtype=np.float32)
    batch = _batch(labels, SecondLabels(others, own_share) if mixed else None)
    targets = batch.soft_targets
    assert targets is not None

    def harm(shown: torch.Tensor) -> torch.Tensor:
        total = shown.new_zeros(())
        for row in range(N):
            known = [(labels[row], own_share[row] if mixed else 1.0)]
            known += [(int(others[row]), 1 - own_share[row])] if mixed else []
            known = [(label, share) for label, share in known if label >= 0]
            if loss == "rslad" or not known:
                total = total + _kl(shown[row : row + 1], targets[row : row + 1], 1.0)
            else:
                total = total - sum(share * shown[row].log_softmax(0)[label] for label, share in known)
        return total

    network = _network()
    images = Adversary(Robust(ATTACK, loss), network, PRESET)
    torch.manual_seed(9)
    found = images(network, batch, batch.pixels[0], taught=True)
    torch.testing.assert_close(found, _attacked(network, batch, harm))


@pytest.mark.parametrize("loss", ROBUST)
def test_no_label_at_all(loss: RobustLoss) -> None:
    _, terms = _answer(_network(), _batch([-1] * N), Robust(ATTACK, loss), _distillation(1.0, 1.0))
    assert terms["loss"].isfinite()
    assert (terms["adversarial_top1"], terms["ce"]) == (0, 0)


@pytest.mark.parametrize("taught", [False, True])
def test_without_an_adversary_nothing_changes(taught: bool) -> None:
    network, plain, batch = _network(), _network(), _batch()
    logits, terms = _answer(network, batch, None, _distillation(0.7, 0.2) if taught else None)
    assert torch.equal(logits, plain(PRESET.normalize(batch.pixels[0])))
    assert set(terms) == ({"ce", "kd", "loss"} if taught else {"ce", "loss"})


@pytest.mark.parametrize("loss", ROBUST)
def test_layers_learn_from_attacked_images(loss: RobustLoss) -> None:
    """The signals compared are those of the attacked images' pass, and none of any pass are kept."""
    torch.manual_seed(0)
    network = models.create("resnet8", CLASSES)
    plain = copy.deepcopy(network)
    settled = settle(parse("attention").layers, ["attention:layer2"], network, size=32, name="resnet8", source="s.zarr")
    signals = SignalTerms(
        settled,
        network,
        shapes={"attention:layer2": (4, 4)},
        size=32,
        name="resnet8",
        seed=0,
        device=torch.device("cpu"),
    )
    drawn = torch.Generator().manual_seed(1)
    taught = {"attention:layer2": torch.rand(N, 4, 4, generator=drawn)}
    pixels = torch.randint(0, 256, (N, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    batch = Batch((pixels,), torch.arange(N) % CLASSES, None, torch.randn(N, CLASSES, generator=drawn), taught)
    distillation = Distillation(make("kd", temperature=1.0), kd_weight=1.0, ce_weight=0.0, signals=signals)
    _, terms = _answer(network, batch, Robust(ATTACK, loss), distillation)
    assert signals._watch.take() == {}

    targets = batch.soft_targets
    assert targets is not None
    harm = {
        "ard": lambda shown: F.cross_entropy(shown, batch.labels),
        "rslad": lambda shown: _kl(shown, targets, 1.0),
    }[loss]
    images = _attacked(plain, batch, harm)
    plain(PRESET.normalize(pixels))
    shown: list[torch.Tensor] = []
    plain.layer2.register_forward_hook(lambda _layer, _given, output: shown.append(output.square().mean(1)))
    plain(images)
    ours = F.normalize(F.adaptive_avg_pool2d(shown[0], 4).flatten(1), dim=1)
    theirs = F.normalize(taught["attention:layer2"].flatten(1), dim=1)
    torch.testing.assert_close(terms["attention"], (ours - theirs).square().mean() / 2, rtol=1e-4, atol=0)


def test_turned_images_are_clean() -> None:
    """The auxiliary task beside it costs what it costs alone, and is added to the loss."""

    def answer(robust: Robust | None) -> dict[str, torch.Tensor]:
        network = _network().eval()
        rotation = Rotation(network, PRESET, weight=0.3, name="it", seed=0, device=torch.device("cpu"))
        adversary = None if robust is None else Adversary(robust, network, PRESET)
        objective = DistillationObjective(PRESET, None, label_smoothing=0.0, adversary=adversary, rotation=rotation)

        def forward(images: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(11)  # of the turns, which are drawn after this pass
            return network(images)

        return objective(forward, _batch(taught=False), _batch().pixels[0])[1]

    attacked, clean = answer(Robust(ATTACK)), answer(None)
    assert torch.equal(attacked["rotation"], clean["rotation"])
    assert attacked["ce"] > clean["ce"]
    torch.testing.assert_close(attacked["loss"], attacked["ce"] + 0.3 * attacked["rotation"])


ARMS: dict[str, tuple[Robust | None, bool]] = {
    "clean": (None, True),
    "alone": (Robust(ATTACK), False),
    "ard": (Robust(ATTACK, "ard"), True),
    "rslad": (Robust(ATTACK, "rslad"), True),
}


class Fleet:
    """Trains students by their names, with all that they share, in a folder of their own."""

    def __init__(self, folder: Path, *, labeled: int = 96, **chosen: Any) -> None:
        self.folder = folder
        labels = np.where(np.arange(96) < labeled, digits(96).labels, -1).astype(np.int32)
        self._images = renderer(replace(digits(96), labels=labels))
        self._settings = SETTINGS.but(**chosen)

    def __call__(self, *names: str, resume: bool = False, stop_after: int = 0) -> None:
        made = [self._student(name) for name in names]
        torch.manual_seed(1000 + stop_after)
        stop = StopAfter(stop_after)
        train_together(made, IndexedTargets(10), order=ORDER, resume=resume, should_stop=stop)

    def _student(self, name: str) -> Student:
        robust, taught = ARMS[name]
        torch.manual_seed(len(name))
        module = Dropping(small_network(seed=len(name)))
        objective = DistillationObjective(
            students.PRESET,
            Distillation(make("kd"), kd_weight=0.9, ce_weight=0.1) if taught else None,
            adversary=None if robust is None else Adversary(robust, module, students.PRESET),
        )
        return student(self.folder / name, module, objective=objective, images=self._images, settings=self._settings)

    def state(self, name: str) -> State:
        found = RunDirectory(self.folder / name).load_checkpoint()
        assert found is not None
        return found


def _assert_alike(fleet: Fleet, alone: Fleet, *names: str) -> None:
    for name in names:
        assert not differences(fleet.state(name), alone.state(name), name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    made = Fleet(tmp_path_factory.mktemp("alone"))
    for name in ARMS:
        made(name)
    return made


def test_each_equals_itself_alone(alone: Fleet, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet(*reversed(ARMS))
    _assert_alike(fleet, alone, *ARMS)


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_resumed(alone: Fleet, step: int, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    with pytest.raises(RunError, match="stopped at"):
        fleet(*ARMS, stop_after=step)
    fleet(*ARMS, resume=True)
    _assert_alike(fleet, alone, *ARMS)


def test_the_history_has_the_accuracy_under_attack(alone: Fleet) -> None:
    for name in ARMS:
        for row in alone.state(name)["history"]:
            if name == "clean":
                assert "adversarial_top1" not in row
            else:
                assert 0 <= row["adversarial_top1"] <= 1
            if name == "alone":
                assert row["adversarial_top1"] == row["train_top1"]


def test_accuracies_are_means_over_the_labeled_samples(tmp_path: Path) -> None:
    """Without a teacher both are of the attacked images; each batch has another number of labels."""
    fleet = Fleet(tmp_path, labeled=20)
    fleet("alone")
    for row in fleet.state("alone")["history"]:
        assert row["adversarial_top1"] == row["train_top1"]
        assert 20 * row["adversarial_top1"] == pytest.approx(round(20 * row["adversarial_top1"]), abs=1e-4)


@pytest.mark.parametrize("chosen", [{"amp": "bf16"}, {"channels_last": True}, {"ema": 0.5}])
def test_other_ways_to_take_a_step(alone: Fleet, chosen: dict[str, Any], tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, **chosen)
    fleet("rslad")
    for row, exact in zip(fleet.state("rslad")["history"], alone.state("rslad")["history"], strict=True):
        assert row["loss"] == pytest.approx(exact["loss"], rel=0.1)
