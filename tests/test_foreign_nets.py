"""Networks that were not made for kdstudy: torchvision's, timm's and a user's own, tapped by path."""

from __future__ import annotations

import copy
import io
import sys
import types

import pytest
import torch
import torchvision
from torch import Tensor, nn

from kdstudy import nets
from kdstudy.errors import KDStudyError
from kdstudy.method import outputs
from kdstudy.nets import NETWORKS, Staged, Tapped, create, flops, memory, parameters, renormalised


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape)


def plain(num_classes: int = 5, channels: int = 3) -> nn.Module:
    """Two maps, dropout, a hidden layer."""
    body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(0.5), nn.Linear(6, num_classes))
    return nn.Sequential(body, nn.MaxPool2d(2), head)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(nets, "NETWORKS", type(NETWORKS)("network"))
    return nets.NETWORKS


# Tapped


def test_taps_by_path_are_the_modules_outputs():
    net = plain().eval()
    x = images(2, 3, 8, 8)
    found = Tapped(net, ["0.0", "1"]).outputs(x)
    assert list(found) == ["0.0", "1", "logits"]
    torch.testing.assert_close(found["0.0"], net[0][0](x))
    torch.testing.assert_close(found["1"], net[1](net[0](x)))
    torch.testing.assert_close(found["logits"], net(x))
    named = Tapped(net, {"deep": "1"})
    assert named.taps == ("deep", "logits")
    torch.testing.assert_close(named.outputs(x)["deep"], found["1"])
    assert list(outputs(named, x)) == ["deep", "logits"]


def test_taps_are_found_as_the_last_map_of_each_size():
    tapped = Tapped(plain()).eval()
    with pytest.raises(KDStudyError, match="found at the first call"):
        _ = tapped.taps
    x = images(2, 3, 8, 8)
    found = tapped.outputs(x)
    assert list(found) == list(tapped.taps) == ["0", "1", "pool", "logits"]
    torch.testing.assert_close(found["logits"], tapped.net[2][3](found["pool"]))  # dropout passes in evaluation
    assert found["0"].shape == (2, 4, 8, 8)
    assert found["1"].shape == (2, 4, 4, 4)


def test_finding_taps_changes_nothing():
    one, other = Tapped(plain()), Tapped(plain(), ["0"])
    other.load_state_dict(one.state_dict())
    one.net[0].eval()
    other.net[0].eval()
    x = images(3, 3, 8, 8)
    after = []
    for net in (one, other):
        torch.manual_seed(3)
        logits = net.outputs(x)["logits"]
        logits.sum().backward()
        after.append([logits, *net.state_dict().values(), *(p.grad for p in net.parameters()), torch.rand(1)])
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=0)
    assert [m.training for m in one.modules()] == [m.training for m in other.modules()]


class Counting(nn.Module):
    """A module that counts its passes, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x.flatten(1)


def test_finding_taps_needs_one_image_and_leaves_buffers():
    tapped = Tapped(nn.Sequential(Counting(), nn.BatchNorm1d(12), nn.Linear(12, 5)))  # one image has no variance
    tapped.outputs(images(3, 3, 2, 2))
    assert tapped.net[0].passes == 1
    assert tapped.training
    assert tapped.net[1].num_batches_tracked == 1


def test_no_hook_stays_behind_even_after_an_error():
    tapped = Tapped(plain(), ["0", "1"])
    tapped.outputs(images(2, 3, 8, 8))
    with pytest.raises(KDStudyError, match=r"Sequential cannot take images \(2, 3, 12, 16\): .*mat1"):
        tapped.outputs(images(2, 3, 12, 16))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tapped.modules())


class Again(nn.Module):
    """A module that runs twice, one that never runs, one that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.idle = nn.Conv2d(3, 3, 1)
        self.pair = Pair()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.pair(self.conv(self.conv(x)))[0]).flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("conv", "tap 'conv': module 'conv' runs 2 times in a forward pass: tap one that runs once"),
        ("idle", "tap 'idle': module 'idle' does not run in a forward pass"),
        ("pair", "tap 'pair': module 'pair' returns no tensor"),
    ],
)
def test_modules_that_cannot_be_tapped(path, message):
    with pytest.raises(KDStudyError) as caught:
        Tapped(Again(), [path]).outputs(images(2, 3, 4, 4))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_tapped_is_not_found():
    tapped = Tapped(Again())
    tapped.outputs(images(2, 3, 4, 4))
    assert tapped.taps == ("pool", "logits")


def test_a_tap_overwritten_in_place_is_refused_and_never_found():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))
    x = images(2, 3, 4, 4)
    with pytest.raises(KDStudyError, match="tap '0': module '0': a later one overwrites it in place"):
        Tapped(net, ["0"]).outputs(x)
    found = Tapped(net).outputs(x)
    assert list(found) == ["1", "pool", "logits"]
    net[1].inplace = False
    assert list(Tapped(net, ["0"]).outputs(x)) == ["0", "logits"]


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["0.9"], "unknown module '0.9': did you mean '0"),
        ({"deep": "11"}, "unknown module '11'"),
        (["0", "0"], "must be different paths"),
        ("0", "must be different paths"),
        ({"logits": "1"}, "'logits' is the network's own output"),
    ],
)
def test_wrong_taps_are_refused(taps, message):
    with pytest.raises(KDStudyError) as caught:
        Tapped(plain(), taps)
    assert message in str(caught.value)


def test_a_path_may_be_called_pool():
    found = Tapped(plain(), {"pool": "1"}).outputs(images(2, 3, 8, 8))
    assert found["pool"].shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 5, 1), "Conv2d returned a tensor (2, 5, 4, 4), must be logits (2, classes)"),
        (nn.Flatten(0), "Flatten returned a tensor (96,), must be logits (2, classes)"),
        (
            nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (6, 16))),
            "returned a tensor (6, 16), must be logits (2, classes)",
        ),
        (Pair(), "Pair returned a tuple, must be logits (2, classes)"),
    ],
)
def test_what_is_not_logits_is_refused(net, message):
    for call in (Tapped(net, []), Tapped(net, []).outputs):
        with pytest.raises(KDStudyError) as caught:
            call(images(2, 3, 4, 4))
        assert message in str(caught.value)
    with pytest.raises(KDStudyError, match="must be logits|cannot take"):
        Tapped(net).outputs(images(2, 3, 4, 4))


def test_memory_errors_and_bugs_keep_their_cause():
    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("full")

    class Bug(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nothing

    with pytest.raises(torch.OutOfMemoryError):
        Tapped(Full())(images(2, 3, 4, 4))
    with pytest.raises(AttributeError):
        Tapped(Bug())(images(2, 3, 4, 4))
    with pytest.raises(KDStudyError) as caught:
        Tapped(plain())(images(2, 3, 4, 4))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_tapped_network_is_copied_saved_and_trained():
    tapped = Tapped(plain())
    x = images(4, 3, 8, 8)
    taps = list(tapped.eval().outputs(x))
    twin = copy.deepcopy(tapped)
    stream = io.BytesIO()
    torch.save(tapped, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=False)
    for other in (twin, read):
        assert list(other.taps) == taps
        torch.testing.assert_close(other.outputs(x), tapped.outputs(x), rtol=0, atol=0)
    assert set(tapped.state_dict()) == {f"net.{name}" for name in tapped.net.state_dict()}
    twin.train().outputs(x)["pool"].square().sum().backward()
    assert twin.net[0][0].weight.grad.abs().sum() > 0
    assert tapped.net[0][0].weight.grad is None


# A user's own


def test_a_plain_factory_is_tapped(registry):
    registry.register("plain")(plain)
    net = create("plain", num_classes=7, channels=2)
    assert isinstance(net, Tapped)
    assert net.outputs(images(3, 2, 8, 8))["logits"].shape == (3, 7)
    assert parameters(net) == parameters(net.net) > 0
    assert flops(net, (2, 8, 8)) == 2 * (64 * 4 * 18 + 64 * 6 + 6 * 7)
    assert memory(lambda: create("plain"), (3, 8, 8), 4) > 0


def chosen(num_classes: int = 5, channels: int = 3) -> nn.Module:
    return Tapped(plain(num_classes, channels), {"early": "0"})


def stubborn(num_classes: int = 5, channels: int = 3) -> nn.Module:
    return plain(5, channels)


def test_a_factory_may_choose_its_taps_and_must_keep_the_classes(registry):
    registry.register("chosen")(chosen)
    registry.register("stubborn")(stubborn)
    assert create("chosen").taps == ("early", "logits")
    with pytest.raises(KDStudyError, match=r"returned a tensor \(2, 5\), must be logits \(2, 9\)"):
        create("stubborn", num_classes=9)(images(2, 3, 8, 8))


# torchvision


def test_every_classifier_of_torchvision_has_a_factory():
    for name in torchvision.models.list_models(module=torchvision.models):
        entry = NETWORKS[f"torchvision:{name}"]
        assert (entry.name, entry.version) == (f"torchvision:{name}", 1)
        assert name in entry.summary


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "squeezenet1_1", "swin_t"])
def test_networks_of_torchvision_are_built_tapped_and_run(name):
    torch.manual_seed(1)
    net = create(f"torchvision:{name}", num_classes=7).eval()
    torch.manual_seed(1)
    own = getattr(torchvision.models, name)(weights=None, num_classes=7).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        found = net.outputs(x)
        torch.testing.assert_close(found["logits"], own(x))
    maps = [tap for tap in net.taps if found[tap].dim() == 4]
    assert len(maps) >= 4
    assert len({found[tap].shape[2:] for tap in maps}) == len(maps)
    assert ("pool" in net.taps) == (name != "squeezenet1_1")
    assert net.taps[-1] == "logits"


def test_resnet18_of_torchvision_is_tapped_where_its_maps_shrink():
    net = create("torchvision:resnet18").eval()
    with torch.no_grad():
        found = net.outputs(images(1, 3, 64, 64))
    sizes = {tap: tuple(z.shape[1:]) for tap, z in found.items()}
    assert sizes == {
        "relu": (64, 32, 32),
        "layer1": (64, 16, 16),
        "layer2": (128, 8, 8),
        "layer3": (256, 4, 4),
        "layer4": (512, 2, 2),
        "avgpool": (512, 1, 1),
        "pool": (512,),
        "logits": (10,),
    }


def test_grey_images_are_repeated_for_torchvision():
    net = create("torchvision:squeezenet1_1", channels=1).eval()
    x = images(2, 1, 64, 64)
    torch.testing.assert_close(net(x), net.net(x.repeat(1, 3, 1, 1)))
    with pytest.raises(KDStudyError, match="channels = 4: network 'torchvision:squeezenet1_1' takes 1 or 3"):
        create("torchvision:squeezenet1_1", channels=4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_further_outputs_have_them_off(name):
    with torch.device("meta"):
        net = create(f"torchvision:{name}", num_classes=4)
        assert net(torch.empty(2, 3, 128, 128)).shape == (2, 4)
    with pytest.raises(KDStudyError, match="aux_logits cannot be given"):
        create(f"torchvision:{name}", aux_logits=True)


def test_images_that_do_not_fit_are_named():
    with torch.device("meta"):
        net, x = create("torchvision:vit_b_16"), torch.empty(2, 3, 32, 32)
        small, other = create("torchvision:inception_v3"), create("torchvision:vit_b_32", image_size=64)
        assert other(torch.empty(2, 3, 64, 64)).shape == (2, 10)
        with pytest.raises(KDStudyError, match=r"VisionTransformer cannot take images \(2, 3, 32, 32\): .*224.*32"):
            net(x)
        with pytest.raises(KDStudyError, match=r"Inception3 cannot take images \(2, 3, 32, 32\): .*Kernel size"):
            small(x)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("torchvision:resnet81", {}, "unknown network of torchvision 'resnet81': did you mean 'resnet18'?"),
        ("torchvision:", {}, "unknown network of torchvision ''"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "weights cannot be given, it starts untrained"),
        ("torchvision:resnet18", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("vision:resnet18", {}, "unknown network 'vision:resnet18': did you mean"),
        ("resnet18", {"num_classes": 1}, "num_classes = 1"),
    ],
)
def test_wrong_foreign_names_and_arguments_are_refused(name, args, message):
    with pytest.raises(KDStudyError) as caught:
        create(name, **args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_names_are_checked_but_not_listed():
    assert NETWORKS.check("torchvision:resnet18", {}).version == 1
    assert not any(":" in name for name in NETWORKS)


# timm


@pytest.fixture
def stub(monkeypatch):
    """A module in timm's place."""
    module = types.ModuleType("timm")
    module.list_models = lambda: ["convnext_tiny", "tiny"]
    module.create_model = lambda name, pretrained, num_classes, in_chans: plain(num_classes, in_chans)
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.mark.usefixtures("stub")
def test_networks_of_timm_are_built_untrained_for_the_channels():
    net = create("timm:tiny", num_classes=6, channels=1)
    assert net.outputs(images(2, 1, 8, 8))["logits"].shape == (2, 6)
    assert NETWORKS["timm:tiny"].version == 1
    for args, message in (
        ({"pretrained": True}, "pretrained cannot be given"),
        ({"nothing": 1}, "network 'timm:tiny': .*nothing"),
    ):
        with pytest.raises(KDStudyError, match=message):
            create("timm:tiny", **args)
    with pytest.raises(KDStudyError, match="unknown network of timm 'convnext_tyni': did you mean 'convnext_tiny'"):
        create("timm:convnext_tyni")


def test_without_timm_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import of a missing module ends in
    with pytest.raises(KDStudyError) as caught:
        create("timm:resnet18")
    assert 'pip install "kdstudy[timm]"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_real_timm():
    library = pytest.importorskip("timm")
    net = create("timm:test_convnext", num_classes=6, channels=1).eval()
    x = images(2, 1, 64, 64)
    found = net.outputs(x)
    assert isinstance(net.net, type(library.create_model("test_convnext")))
    assert found["logits"].shape == (2, 6)
    assert sum(z.dim() == 4 for z in found.values()) >= 3


# Other normalisations


@pytest.mark.parametrize("kind", ["staged", "tapped", "grey"])
def test_renormalised_images_are_those_the_network_knows(kind):
    channels = 1 if kind == "grey" else 3
    if kind == "staged":
        net = create("resnet8", width=2)
    else:
        net = Tapped(plain(5, 3), before=nets.tapped.Grey() if kind == "grey" else None)
    net.eval()
    raw = torch.rand(2, channels, 8, 8)
    ours, theirs = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), ([0.1, 0.2, 0.3], [0.5, 0.25, 0.125])
    ours, theirs = [[v[:channels] for v in pair] for pair in (ours, theirs)]

    def normal(colours):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in colours)
        return (raw - mean) / std

    wrapped = renormalised(net, tuple(ours), tuple(theirs))
    torch.testing.assert_close(wrapped(normal(ours)), net(normal(theirs)))
    torch.testing.assert_close(wrapped.outputs(normal(ours)), net.outputs(normal(theirs)))
    assert wrapped.state_dict().keys() == net.state_dict().keys()
    assert not wrapped.training
    assert isinstance(wrapped, Staged) == (kind == "staged")
    assert sum(p.numel() for p in wrapped.parameters()) == parameters(net)
    torch.testing.assert_close(wrapped.double()(normal(ours).double()), net.double()(normal(theirs).double()))


@pytest.mark.parametrize(
    ("colours", "message"),
    [(([0.5], [0.0]), "must be greater than 0"), (([0.5, 0.5], [1.0]), "have 2 and 1 values, the images 1 channels")],
)
def test_impossible_normalisations_are_refused(colours, message):
    with pytest.raises(KDStudyError, match=message):
        renormalised(create("resnet8"), ([0.5], [0.5]), colours)
