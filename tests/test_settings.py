"""Settings refuse by name what they do not know, what is out of range and what contradicts."""

import json

import pytest
from pydantic import ValidationError

from dpmkit.settings import PROFILES, MemorySettings, Settings, UserError


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_builds(profile):
    settings = Settings.of(profile)
    assert settings.profile == profile
    assert all(settings.flat()[name] == value for name, value in PROFILES[profile].items())
    json.dumps(settings.flat())  # a record holds it


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match=r"'laptop' is not known.*smoke, demo, quick, full, voices, smollm2, paper"):
        Settings.of("laptop")
    for name in ("memory.learning_rate", "lr", "memory.lr.x", "memory", "", "checked", "home_path"):
        with pytest.raises(UserError, match=f"'{name}'.*memory\\.lr") as error:
            Settings.of("demo", {name: 1})
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'learning_rate' is not known"):
        Settings.of("demo", learning_rate=1)


@pytest.mark.parametrize(("name", "value"), [
    ("memory.lr", "fast"), ("memory.lr", None), ("memory.lr", True), ("memory.lr", [1.0]), ("memory.lr", "nan"),
    ("memory.lr", float("inf")), ("memory.rank", 2.5), ("memory.rank", "4"), ("memory.rank", True),
    ("finetune.epochs", float("inf")), ("finetune.epochs", float("nan")), ("memory.optimizer", 3), ("corpus", None),
    ("ablation.lr", 0.1), ("ablation.lr", ["a"]), ("ablation.lr", [True]), ("ablation.rank", "16"),
    ("ablation.rank", [1.5]), ("ablation.rank", []), ("evaluation.own_answers", 1),
    ("memory.stepping", "every-0"), ("ablation.stepping", ["sentence", "stride"]),
    ("ablation.lr", [float("nan")]), ("context.tokens", {4: 1}),
])
def test_values_of_another_type(name, value):
    with pytest.raises(UserError, match=f"setting {name} must .*default: "):
        Settings.of("demo", {name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("codes.codebook_size", -1), ("source.classes", 5), ("segments.threshold", 1.0),
    ("codes.layer", 0), ("codes.frame_rate", -1), ("backbone.window", 0), ("backbone.layers", 0),
    ("backbone.hidden", -8), ("backbone.heads", 0), ("backbone.hidden", 130), ("backbone.dropout", 1.0),
    ("backbone.dropout", -0.1), ("backbone.dtype", "float12"), ("finetune.n_o", 0), ("finetune.n_p", -1),
    ("finetune.n_q", 0), ("finetune.lr", -1), ("finetune.epochs", 0), ("finetune.batch", 0),
    ("finetune.warmup", 1.5), ("finetune.weight_decay", -1), ("finetune.patience", -1), ("finetune.lora_rank", -1),
    ("finetune.lora_dropout", 1.0), ("classifier.epochs", 0), ("memory.rank", 0), ("memory.prefix", -1),
    ("memory.lr", -1e-3), ("memory.steps", -1), ("memory.weight_decay", -1),
    ("memory.optimizer", "adam"), ("memory.history_emotions", "true"), ("evaluation.streams", 0),
    ("evaluation.bootstrap", 0), ("evaluation.confidence", 0), ("evaluation.confidence", 1.0),
    ("evaluation.confidence", 95), ("evaluation.limit", -1), ("ablation.conversations", 0), ("ablation.rank", [0]),
    ("ablation.lr", [0.1, -1]), ("ablation.prefix", [-1]), ("ablation.steps", [-1]), ("context.tokens", [0]),
    ("context.repeats", 0), ("conversation.speakers", 1), ("conversation.conversations", 0),
    ("conversation.min_turns", 0), ("conversation.min_turns", 61), ("fold", 0), ("seed", -1),
    ("conversation.seed", -1),
])
def test_values_out_of_range(name, value):
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        Settings.of("demo", {name: value})
    assert "\n" not in str(error.value)


def test_overrides_by_dotted_name():
    settings = Settings.of("demo", {"memory.lr": 1e-3, "memory.rank": 8, "memory.decay": 1}, fold=2, root="x")
    assert (settings.memory.lr, settings.memory.rank, settings.memory.decay, settings.fold) == (1e-3, 8, 1.0, 2)
    assert type(settings.memory.decay) is float and type(settings.memory.rank) is int and settings.root == "x"
    assert Settings.of("demo").memory == MemorySettings()  # profiles and defaults stay as they are
    tuples = Settings.of("demo", {"ablation.lr": [0, 1e-2], "ablation.rank": (2,), "context.tokens": [3, 4]})
    assert (tuples.ablation.lr, tuples.ablation.rank, tuples.context.tokens) == ((0.0, 0.01), (2,), (3, 4))
    assert all(type(v) is float for v in tuples.ablation.lr)


def test_a_profile_is_named_once():
    assert Settings.of("smoke", {"profile": "smoke"}) == Settings.of("smoke")
    with pytest.raises(UserError, match="profile"):
        Settings.of("demo", {"profile": "paper"})  # would be a demo run under the paper's name


def test_a_round_trip_through_a_record():
    settings = Settings.of("smoke", {"memory.lr": 0.5, "ablation.rank": (2, 3)})
    assert Settings.of("smoke", json.loads(json.dumps(settings.flat()))) == settings


def test_roots(tmp_path):
    settings = Settings.of("demo", {"home": str(tmp_path)})
    with pytest.raises(UserError, match=r"'demo' needs a root.*'' is not a folder.*root="):
        _ = settings.root_path
    with pytest.raises(UserError, match=r"'demo' needs a root.*'missing' is not a folder"):
        _ = settings.replace("root", "missing").root_path
    (tmp_path / "there").mkdir()
    assert settings.replace("root", "there").root_path == (tmp_path / "there").resolve()
    assert settings.replace("root", str(tmp_path)).root_path == tmp_path.resolve()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        _ = settings.replace("root", "file").root_path
    assert settings.home_path == tmp_path.resolve() and settings.results_path == tmp_path / "results" / "demo-demo"


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings.of("demo").memory.lr = 1.0


def test_every_number_has_a_lower_limit():
    for name, value in Settings.of("demo").flat().items():
        several = isinstance(value, tuple)
        if isinstance(value[0] if several else value, (str, bool)) or name.endswith("alpha"):
            continue
        with pytest.raises(UserError, match=f"setting {name} must"):
            Settings.of("demo", {name: [-1000] if several else -1000})
