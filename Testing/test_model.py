"""Model files: what comes back, what is refused and why, where models are looked for, and published checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from SpatialDiffusionCore.errors import InputError, ModelError  # noqa: E402
from SpatialDiffusionCore.method.schedule import Schedule  # noqa: E402
from SpatialDiffusionCore.modelfile import card as card_module
from SpatialDiffusionCore.modelfile import catalog, checkpoint_import, safetensors_file  # noqa: E402
from SpatialDiffusionCore.modelfile import model as m
from SpatialDiffusionCore.networks.build import build  # noqa: E402

ARCHITECTURE = {
    "head": "matrix",
    "volume_size": [20, 24, 18],
    "channels": [2, 4, 8, 8, 8, 8, 8],
    "groups": 4,
    "time_width": 16,
    "n_classes": 2,
}
CARD = {
    "name": "small",
    "architecture": ARCHITECTURE,
    "grid": {"size": [20, 24, 18], "spacing": 8.0, "loading": "canonical"},
    "schedule": Schedule().to_dict(),
    "modalities": {"any": 0, "t1-brain": 1, "oct": 2},
    "training": {"data": "none"},
    "license": "CC0",
    "accuracy": {"dice": 0.5},
    "created": "2025-01-01",
}


def network(**changes):
    torch.manual_seed(0)
    return build({**ARCHITECTURE, **changes}).eval()


def card_of(**changes):
    return card_module.ModelCard.from_dict({"format": card_module.FORMAT, **CARD, **changes})


def saved(path, card=None, **options):
    safetensors_file.save_model(path, network(), card_of(**(card or {})), **options)
    return path


def pair(size=(20, 24, 18)):
    return torch.rand(2, 1, 1, *size, generator=torch.Generator().manual_seed(1))


def predict(model, modality="any"):
    with torch.no_grad():
        return model.denoiser(modality, modality)(*pair(model.size), torch.tensor([7]))


def refusal(action):
    """The message of a ModelError or InputError: one sentence for a person."""
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.fixture(autouse=True)
def forget():
    m.LOADED.clear()
    yield
    m.LOADED.clear()


# -------------------------------------------------------------------------------------------------- there and back
def test_whoever_may_read_new_files_may_read_a_model(tmp_path):
    (tmp_path / "plain").touch()
    assert saved(tmp_path / "small.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_saved_model_loads_and_predicts_the_same(tmp_path):
    model = m.load_model(saved(tmp_path / "small.safetensors"))
    (a, b), t = pair(), torch.tensor([7])
    with torch.no_grad():
        assert torch.equal(predict(model), network()(a, b, t, torch.tensor([0])))
        assert torch.equal(predict(model, "t1-brain"), network()(a, b, t, torch.tensor([1])))
    said = {k: v for k, v in model.card.to_dict().items() if k not in ("format", "sampler")}
    assert json.loads(json.dumps(said)) == json.loads(json.dumps(CARD)) and model.card.sampler == "fast"
    assert model.schedule() == Schedule() and model.size == (20, 24, 18) and model.name == "small"
    assert not model.network.training
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_what_this_version_does_not_know_of_a_card_is_kept(tmp_path):
    path = saved(tmp_path / "small.safetensors", {"thumbnail": {"of": [1, 2]}})
    card = m.load_model(path).card
    assert card.other == {"thumbnail": {"of": [1, 2]}}
    safetensors_file.save_model(path, network(), replace(card, license="mine"))
    again = card_module.read_card(path)
    assert again.to_dict() == {**card.to_dict(), "license": "mine"} and again.other == card.other


def test_bundled_cards_are_written_as_they_are_read():
    files = sorted(catalog.BUNDLED.glob("*.safetensors"))
    assert len(files) >= 3
    for path in files:
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        assert json.loads(card_module.read_card(path).to_json()) == json.loads(header["__metadata__"][card_module.KEY])


def test_half_precision_halves_the_file_and_is_used_in_single(tmp_path):
    whole, half = saved(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert {t.dtype for t in load_file(half).values()} == {torch.float16}
    model = m.load_model(half)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert torch.allclose(predict(model), predict(m.load_model(whole)), atol=2e-3)


def test_the_last_model_is_kept_until_its_file_changes(tmp_path):
    path = saved(tmp_path / "small.safetensors")
    first = m.load_model(path)
    assert m.load_model(path) is first
    saved(path, {"license": "another one"})
    os.utime(path, ns=(1, 1))
    assert m.load_model(path).card.license == "another one"


def test_the_models_used_last_stay_loaded(tmp_path):
    paths = [saved(tmp_path / f"{name}.safetensors", {"name": name}) for name in ("a", "b", "c")]
    kept = m.LoadedModels(most=2)

    def get(number):
        return kept.get(paths[number], card_module.read_card(paths[number]))

    a, b = get(0), get(1)
    assert get(0) is a  # so b is the one that was used longest ago
    get(2)
    assert get(0) is a and get(1) is not b
    kept.clear()
    assert get(0) is not a


def test_threads_that_ask_for_a_model_get_the_same_one(tmp_path):
    path, kept = saved(tmp_path / "small.safetensors"), m.LoadedModels(most=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kept.get(path, card_module.read_card(path)), range(8)))
    assert all(one is found[0] for one in found)


def test_the_class_of_a_pair(tmp_path):
    model = m.load_model(saved(tmp_path / "small.safetensors"))
    assert model.class_id("t1-brain", "t1-brain") == 1 and model.class_id("oct", "oct") == 2
    assert model.class_id("t1-brain", "oct") == 0 and model.class_id("ct-head-neck", "ct-head-neck") == 0


def test_layers_parameters_and_operations_are_counted(tmp_path):
    facts = m.describe(m.load_model(saved(tmp_path / "small.safetensors")))
    assert facts["parameters"] == sum(p.numel() for p in network().parameters())
    assert facts["layers"] > 40
    # The convolutions alone, by hand: 2 · outputs · kernel · input channels.
    grid, flops = (10, 12, 9), 2 * 10 * 12 * 9 * 4 * 64 * 2
    for inner, outer in zip([4, 8, 8, 8, 8], [8, 8, 8, 8, 8]):
        grid = tuple((n - 1) // 2 + 1 for n in grid)
        flops += 2 * int(np.prod(grid)) * outer * 27 * (inner + outer) + (
            2 * int(np.prod(grid)) * outer * inner if inner != outer else 0
        )
    assert flops < facts["flops"] < flops + 100_000


# ------------------------------------------------------------------------------------------------------ refusals
def rewrite(path, change):
    """Change a model file's header (a dictionary) in place."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    text = change(header)
    text = json.dumps(header if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


def with_card(path, change):
    def edit(header):
        card = json.loads(header["__metadata__"][card_module.KEY])
        result = change(card)
        header["__metadata__"][card_module.KEY] = json.dumps(result if isinstance(result, list) else card)

    return rewrite(path, edit)


@pytest.mark.parametrize("share", [0.0, 0.00005, 0.01, 0.2, 0.6, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path / "small.safetensors")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    assert str(path) in refusal(lambda: m.load_model(path))


def test_what_is_no_model_is_refused(tmp_path):
    assert "does not exist" in refusal(lambda: m.load_model(tmp_path / "none.safetensors"))
    path = tmp_path / "a.safetensors"
    for content in (b"", b"text " * 100, pickle.dumps({"a": 1}), struct.pack("<Q", 2) + b"[]", b"\xff" * 64):
        path.write_bytes(content)
        assert str(path) in refusal(lambda: m.load_model(path))
    save_file({"weight": torch.zeros(3)}, path)
    assert "no card" in refusal(lambda: m.load_model(path))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda card: card.update(format=99), "format version 99; this program reads version 1"),
        (lambda card: card.pop("format"), "format version None"),
        (lambda card: card.pop("architecture"), "lacks the entry 'architecture'"),
        (lambda card: card.pop("schedule"), "lacks the entry 'schedule'"),
        (lambda card: card.pop("grid"), "lacks the entry 'grid'"),
        (lambda card: card.update(name=7), "name 7"),
        (lambda card: card.update(modalities={"any": "first"}), "expected a whole number for each"),
        (lambda card: card.update(sampler="quick"), "sampler 'quick'; expected fast or reference"),
        (lambda card: card.update(steps=66), "66 steps of the diffusion; expected a whole number, 0 to 65"),
        (lambda card: card.update(grids={"pet": card["grid"]}), "'pet', which is none of its"),
        (lambda card: card.update(schedules={"oct": {"timesteps": 9}}), "schedules of \\[9, 65\\] timesteps"),
        (lambda card: card.update(focus=[1]), "entry 'focus' that is not a table"),
        (lambda card: card.update(training="none"), "training 'none'; expected a table"),
        (lambda card: card["grid"].update(size=[20, 24]), "grid size"),
        (lambda card: card["grid"].update(size=[20, 24, -1]), "grid size"),
        (lambda card: card.update(grid=7), "grid"),
        (lambda card: card["grid"].update(loading="magic"), "loading 'magic'"),
        (lambda card: card.update(modalities={}), "no modalities"),
        (lambda card: card["schedule"].update(kind="square"), "schedule"),
        (lambda card: card["schedule"].update(wrong=1), "schedule"),
        (lambda card: card.update(schedule=None), "schedule"),
        (lambda card: card["architecture"].update(head="flow"), "flow"),
        (lambda card: card["architecture"].update(wrong=1), "wrong"),
        (lambda card: card["architecture"].update(groups=3), "divisible"),
        (lambda card: card["architecture"].update(n_classes=3), "class_embedding.* shape 3×8, the network needs 4×8"),
        (lambda card: card["architecture"].update(channels=[2, 4, 8, 8, 8, 8, 12]), "shape"),
        (lambda card: card["architecture"].update(volume_size=[80, 24, 18]), "output_head.2.weight"),
        (lambda card: card.update(focus={"modalities": ["ct-head-neck"]}), "'ct-head-neck', which is none of its"),
        (lambda card: card.update(agreement={"pet": 0.6}), "'pet', which is none of its"),
        (lambda card: [1, 2], "card"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_with_the_reason(tmp_path, change, words):
    path = with_card(saved(tmp_path / "small.safetensors"), change)
    with pytest.raises(ModelError, match=words):
        m.load_model(path)
    refusal(lambda: m.load_model(path))


def test_a_card_that_is_no_json_is_refused(tmp_path):
    path = rewrite(
        saved(tmp_path / "small.safetensors"), lambda h: h["__metadata__"].update({card_module.KEY: "{half"})
    )
    assert "not valid JSON" in refusal(lambda: m.load_model(path))


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = saved(tmp_path / "small.safetensors")
    metadata = {card_module.KEY: json.dumps({"format": card_module.FORMAT, **CARD})}
    weights = {key: value.clone() for key, value in load_file(path).items()}  # the file below is written anew
    key = "encoder.encoder.1.conv2.2.weight"

    def message(**changes):
        changed = {k: v for k, v in {**weights, **changes}.items() if v is not None}
        save_file(changed, path, metadata=metadata)
        return refusal(lambda: m.load_model(path))

    assert f"lacks the weights '{key}' (8×8×3×3×3)" in message(**{key: None})
    flat = weights[key][..., 0].contiguous()
    assert f"'{key}' has shape 8×8×3×3, the network needs 8×8×3×3×3" in message(**{key: flat})
    assert "'extra'" in message(extra=torch.zeros(2))
    assert f"'{key}'" in message(**{key: torch.full_like(weights[key], float("nan"))})


def test_a_network_that_diverged_is_not_saved(tmp_path):
    broken = network()
    broken.output_head[2].bias.data[3] = float("nan")
    assert "output_head.2.bias" in refusal(
        lambda: safetensors_file.save_model(tmp_path / "a.safetensors", broken, card_of())
    )
    assert "grid size (16, 16)" in refusal(lambda: card_module.ModelGrid((16, 16), 3.5, "canonical"))
    assert "'pet', which is none" in refusal(lambda: replace(card_of(), agreement={"pet": 0.5}))
    assert "no folder" in refusal(
        lambda: safetensors_file.save_model(tmp_path / "none" / "a.safetensors", network(), card_of())
    )
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- search path
def test_models_are_found_in_the_users_folder_which_wins(tmp_path, monkeypatch, user_models):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr(catalog, "BUNDLED", bundled)
    assert catalog.user_folder() == user_models and catalog.catalog() == {}
    saved(bundled / "x.safetensors", {"name": "one"})
    saved(bundled / "y.safetensors", {"name": "two"})
    saved(user_models / "z.safetensors", {"name": "two", "license": "mine"})
    (user_models / "broken.safetensors").write_bytes(b"no model")
    (user_models / "notes.txt").write_text("no model either")
    assert list(catalog.catalog()) == ["one", "two"]
    assert m.load_model("two").card.license == "mine" and m.load_model("one").name == "one"
    assert "installed: one, two" in refusal(lambda: m.load_model("three"))


def test_without_the_variable_the_folder_is_the_platforms(tmp_path, monkeypatch):
    monkeypatch.delenv("SPATIAL_DIFFUSION_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(catalog.sys, "platform", "linux")
    assert catalog.user_folder() == tmp_path / "spatial-diffusion" / "models"
    assert isinstance(catalog.catalog(), dict)  # a folder that is not there is no error


def test_the_model_is_chosen_by_modality(user_models):
    assert "installed models know: nothing" in refusal(lambda: catalog.choose())
    saved(user_models / "a.safetensors", {"name": "retina", "modalities": {"oct": 0}})
    saved(user_models / "b.safetensors", {"name": "general", "modalities": {"any": 0, "ct-head-neck": 1}})
    saved(user_models / "c.safetensors", {"name": "brain", "modalities": {"t1-brain": 0}})
    assert catalog.choose(None, "oct", "oct").card.name == "retina"
    saved(user_models / "d.safetensors", {"name": "both", "modalities": {"t1-brain": 1, "t2-head-neck": 2}})
    assert catalog.choose(None, "t1-brain", "t1-brain").card.name == "brain"  # the one trained on the fewest others
    assert catalog.choose(None, "t1-brain", "t2-head-neck").card.name == "both"
    (user_models / "d.safetensors").unlink()
    assert catalog.choose(None, "t1-brain", "oct").card.name == "general"  # trained on neither, but takes anything
    assert catalog.choose().card.name == "general"
    saved(user_models / "e.safetensors", {"name": "own", "modalities": {"any": 0}})
    assert catalog.choose(None, "any", "any").card.name == "own"  # trained for anything, and nothing else
    assert catalog.choose(None, "ct-head-neck", "any").card.name == "general"  # the one that has seen the most


def test_among_equals_ones_own_model_is_chosen_before_a_bundled_one(tmp_path, monkeypatch, user_models):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr(catalog, "BUNDLED", bundled)
    saved(bundled / "a.safetensors", {"name": "anatomy", "modalities": {"any": 0}})
    assert catalog.choose().card.name == "anatomy"
    saved(user_models / "z.safetensors", {"name": "ours", "modalities": {"any": 0}})
    assert catalog.choose().card.name == "ours"


def test_a_model_that_does_not_know_the_modality_is_refused(user_models):
    saved(user_models / "a.safetensors", {"name": "retina", "modalities": {"oct": 0}})
    saved(user_models / "c.safetensors", {"name": "brain", "modalities": {"t1-brain": 0}})
    words = refusal(lambda: catalog.choose("brain", "oct", "oct"))
    assert "brain was not trained for oct; it knows: t1-brain" in words
    assert "know: oct, t1-brain" in refusal(lambda: catalog.choose(None, "ct-head-neck", "ct-head-neck"))


# --------------------------------------------------------------------------------------------- published checkpoints
def imported(published, folder, **changes):
    options = {"volume_size": published.config["volume_size"], **changes}
    if published.config["n_classes"] > 1:
        options.setdefault("modality", ["oct", "octa", "t1", "t2"])
    path = folder / "imported.safetensors"
    return checkpoint_import.import_checkpoint(published.checkpoint, path, **options), path


def test_an_imported_checkpoint_is_the_checkpoint_bit_for_bit(published, tmp_path):
    card, path = imported(published, tmp_path)
    model = m.load_model(path, *(["oct"] * 2 if "oct" in card.modalities else []))
    original = torch.load(published.checkpoint, weights_only=True)
    state = model.network.state_dict()
    assert set(state) == set(original) and all(torch.equal(state[k], original[k]) for k in original)
    config = published.config
    assert card.architecture["channels"] == config["channels"]
    assert card.architecture["n_classes"] == config["n_classes"]
    assert card.architecture["time_width"] == config["time_dim"]
    assert card.grid.to_dict() == {"size": config["volume_size"], "spacing": None, "loading": "published"}
    assert model.schedule() == Schedule(
        config["timesteps"], config["transf_range"], config["transl_range"], config["schedule"]
    )
    names = {
        "architecture": {
            "channels": config["channels"],
            "volume_size": config["volume_size"],
            "n_classes": config["n_classes"],
            "time_width": config["time_dim"],
        }
    }
    own = build(names["architecture"]).eval()
    own.load_state_dict(original)
    both = (torch.from_numpy(published.expected["pair"][:1]) + 1) / 2
    t = torch.tensor([30])
    with torch.no_grad():
        ids = torch.tensor([card.modalities.get("t1-brain", 0)])
        ours = model.denoiser("t1-brain", "t1-brain")(both[:, :1], both[:, 1:], t)
        assert torch.equal(ours, own(both[:, :1], both[:, 1:], t, ids))
    # The class of a pair comes from the order of training; the published output for it is met.
    if config["n_classes"] > 1:
        assert card.modalities == {"any": 0, "oct": 1, "octa": 2, "t1-brain": 3, "t2-head-neck": 4}
        assert model.class_id("t2-head-neck", "t2-head-neck") == 4
    assert published.expected.get("class_id", [0])[0] == 0
    with torch.no_grad():
        ours = model.denoiser("any", "any")(both[:, :1], both[:, 1:], t)
    assert np.abs(ours[0].numpy() - published.expected["affine_none_t30"][0]).max() < 1e-5


def test_only_what_the_tensors_cannot_tell_is_asked(conditional, unconditional, tmp_path):
    words = refusal(lambda: imported(unconditional, tmp_path, volume_size=[64, 64, 64]))
    assert "output_head.2.weight" in words and "2×1×2" in words and "64×64×64" in words
    assert "D H W" in refusal(lambda: imported(unconditional, tmp_path, volume_size=[66, 65]))
    words = refusal(lambda: imported(conditional, tmp_path, modality=["oct", "octa"]))
    assert "4 modalities" in words and "got 2" in words
    assert "choose one of: any, t1-brain" in refusal(
        lambda: imported(conditional, tmp_path, modality=["oct", "octa", "t1", "xray"])
    )
    assert "at most one" in refusal(lambda: imported(unconditional, tmp_path, modality=["oct", "octa"]))
    assert not list(tmp_path.iterdir())
    card, _ = imported(unconditional, tmp_path, modality="oct", name="retina")
    assert card.modalities == {"oct": 0} and card.name == "retina"


class Trap:
    """A pickle that leaves a mark when it is executed."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_anything_but_plain_tensors_is_refused_and_never_executed(tmp_path):
    size, out = [20, 24, 18], tmp_path / "out.safetensors"
    mark = tmp_path / "executed"
    plain = network(n_classes=1).state_dict()
    contents = [
        {**plain, "trap": Trap(str(mark))},
        Trap(str(mark)),
        [torch.zeros(2)],
        {"model": plain},
        {1: torch.zeros(2)},
        {},
        {**plain, "epoch": 3},
        network(n_classes=1),
    ]
    for content in contents:
        torch.save(content, tmp_path / "a.pth")
        assert "plain dictionary of tensors" in refusal(
            lambda: checkpoint_import.import_checkpoint(tmp_path / "a.pth", out, volume_size=size)
        )
    for raw in (b"", b"no checkpoint", pickle.dumps({"a": Trap(str(mark))})):
        (tmp_path / "a.pth").write_bytes(raw)
        refusal(lambda: checkpoint_import.import_checkpoint(tmp_path / "a.pth", out, volume_size=size))
    assert "does not exist" in refusal(
        lambda: checkpoint_import.import_checkpoint(tmp_path / "b.pth", out, volume_size=size)
    )
    assert not mark.exists() and not out.exists()


def test_a_checkpoint_of_another_network_is_refused_by_key(tmp_path):
    size, out, path = [20, 24, 18], tmp_path / "out.safetensors", tmp_path / "a.pth"
    plain = network(n_classes=1).state_dict()

    def message(size=size, groups=4, **changes):
        torch.save({k: v for k, v in {**plain, **changes}.items() if v is not None}, path)
        return refusal(lambda: checkpoint_import.import_checkpoint(path, out, volume_size=size, groups=groups))

    assert "'encoder.in_conv.weight'" in message(**{"encoder.in_conv.weight": None})
    assert "'encoder.encoder.2.conv2.0.weight'" in message(**{"encoder.encoder.2.conv2.0.weight": None})
    assert "'encoder.encoder.0.conv1.2.weight'" in message(**{"encoder.encoder.0.conv1.2.weight": None})
    assert "'output_head.2.bias' has shape 13" in message(**{"output_head.2.bias": torch.zeros(13)})
    assert "2 dimensions, expected 5" in message(**{"output_head.2.weight": torch.zeros(12, 8)})
    assert "'spare'" in message(spare=torch.zeros(1))
    assert "NaN" in message(**{"output_head.2.bias": torch.full((12,), float("nan"))})
    assert "divisible" in message(groups=32)
    assert not out.exists()
    torch.save(plain, path)
    checkpoint_import.import_checkpoint(path, out, volume_size=size, groups=4)
    assert m.load_model(out).card.architecture["groups"] == 4


def test_weights_are_read_as_the_safetensors_package_reads_them(tmp_path):
    """Slicer has no safetensors package, so models are read without it: every type, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 5, generator=generator)
    tensors = {
        str(t): (values * 50).to(t)
        for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
    }
    tensors.update({"bool": values > 0, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)})
    save_file(tensors, tmp_path / "w.safetensors", metadata={"a": "b"})
    ours, theirs = safetensors_file.read_weights(tmp_path / "w.safetensors"), load_file(tmp_path / "w.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-3])
    with pytest.raises(ModelError, match="damaged"):
        safetensors_file.read_weights(tmp_path / "cut.safetensors")


def test_a_modality_of_ones_own_is_known_once_its_model_is_installed(user_models):
    from SpatialDiffusionCore.modelfile import catalog

    with pytest.raises(InputError, match="my-eye.*t1-brain"):
        catalog.get("my-eye")
    network = build({"head": "points", "volume_size": [16, 16, 16], "channels": [8, 8, 8, 8], "points": 8})
    card = card_module.ModelCard(
        name="mine",
        architecture=network.architecture,
        schedule=Schedule(),
        grid=card_module.ModelGrid((16, 16, 16), 3.5, "canonical"),
        modalities={"my-eye": 0},
    )
    safetensors_file.save_model(user_models / "mine.safetensors", network, card)
    assert catalog.get("My eye").key == "my-eye"
    assert catalog.choose(None, "my-eye", "my-eye").card.name == "mine"
    with pytest.raises(InputError, match="my-eye"):
        catalog.get("your-eye")
