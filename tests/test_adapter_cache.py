"""The cache of adapters: what hits, what goes, and what damage, forgery and accidents cannot do.

Other processes import this file, so torch is imported where it is needed only.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from sift_rag.adapter_cache import AdapterCache, CachedAdapter
from sift_rag.documents import Document, content_hash, split

BASE, TENANT = "tiny 0f3a", "a-secret-tenant"
CONFIG = {"rank": 8, "epochs": 6}
PASSAGES = [Document(f"Passage {n} says the secret {n}.", id=f"file{n}.md") for n in range(4)]
REPORT = {"losses": [2.5, 1.25], "stopped": "completed", "probes": {"held_out": [1.0, 0.5]}}


class Clock:
    """Stands still until it is turned, forwards or back."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def key(*documents: Document, **changed: Any) -> str:
    known: dict[str, Any] = {"base": BASE, "config": CONFIG, "tenant": TENANT}
    known |= changed
    return AdapterCache.key(documents=list(documents) or PASSAGES, **known)


def weights(seed: int = 0, n: int = 1000) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def put(cache: AdapterCache, *documents: Document, seed: int = 0, **changed: Any) -> str:
    """Train, as it were, and keep; the key."""
    used = list(documents) or PASSAGES
    name = key(*used, **changed)
    cache.put(name, weights(seed), used, REPORT)
    return name


def adapter_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


@contextmanager
def silence() -> Iterator[None]:
    """Not even a warning that the library would keep from being an error."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    assert not told


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


# --- the key ----------------------------------------------------------------------------------


def test_all_that_changes_an_adapter_changes_its_key() -> None:
    from sift_rag.training import TrainingConfig

    one, two = PASSAGES[:2]
    retold = Document("Another text.", id=one.id)
    renamed = Document(one.text, id="another")
    elsewhere = Document(one.text, {"source": "another"}, one.id)
    keys = [
        key(one, two),
        key(two, one),
        key(one),
        key(one, two, two),
        key(retold, two),
        key(renamed, two),
        key(elsewhere, two),
        key(one, two, base="tiny 0f3b"),
        key(one, two, tenant="another"),
    ]
    changes: list[dict[str, Any]] = [
        {"rank": 4},
        {"seed": 1},
        {"target_modules": ("q_proj",)},
        {"max_seconds": 9.0},
    ]
    keys += [key(one, two, config=TrainingConfig(**change)) for change in ({}, *changes)]
    assert len(set(keys)) == len(keys)


def test_fields_that_run_into_each_other_are_told_apart() -> None:
    assert key(base="a", tenant="bc") != key(base="ab", tenant="c")
    assert key(Document("bc", id="a")) != key(Document("c", id="ab"))
    assert key(config={"a": {"b": 1}}) != key(config={"a": [["b", 1]]})
    assert key(config={"a": 1}) != key(config={"a": "1"}) != key(config={"a": None})


@given(rank=st.integers(1, 64), alpha=st.integers(1, 100), steps=st.none() | st.integers(1, 9))
def test_equal_settings_have_one_key(rank: int, alpha: int, steps: int | None) -> None:
    from sift_rag.training import TrainingConfig

    one = TrainingConfig(rank=rank, alpha=alpha, steps=steps, target_modules=["q_proj"])  # type: ignore[arg-type]
    two = TrainingConfig(rank=rank, alpha=float(alpha), steps=steps, target_modules=("q_proj",))
    assert one == two
    assert key(config=one) == key(config=two)


def test_settings_of_peft_count_whole() -> None:
    from peft import LoraConfig

    names = ["q_proj", "v_proj", "k_proj", "o_proj"]
    one = LoraConfig(r=4, target_modules=names)  # peft makes a set of it
    two = LoraConfig(r=4, target_modules=names[::-1])
    assert key(config={"peft": one}) == key(config={"peft": two})
    assert key(config={"peft": one}) != key(config={"peft": LoraConfig(r=4, use_dora=True)})


@dataclass(frozen=True)
class Named:
    objective: Any


def imported(lesson: object) -> object:
    return lesson


def test_a_function_counts_by_its_source_and_a_lambda_as_itself() -> None:
    one, two = (lambda lesson: 1), (lambda lesson: 2)
    assert one.__name__ == two.__name__
    assert key(config=Named(one)) == key(config=Named(one)) != key(config=Named(two))
    assert key(config=Named([].append)) != key(config=Named([].append))  # no two are known as one
    before = key(config=Named(imported))
    code = """
        import test_adapter_cache as there
        print(there.key(config=there.Named(there.imported)))
        print(there.key(config=there.Named(lambda lesson: 1)))
        print(there.key())
    """
    there = run_python(code).stdout.split()
    assert there == [before, there[1], key()]
    assert there[1] != key(config=Named(one))


def test_the_key_wants_strings() -> None:
    with pytest.raises(TypeError, match="tenant is None; it must be a string"):
        key(tenant=None)
    with pytest.raises(TypeError, match="base is 3"):
        key(base=3)


# --- in memory --------------------------------------------------------------------------------


def test_a_hit_gives_what_was_put_and_is_counted() -> None:
    cache = AdapterCache()
    assert cache.get(key()) is None
    name = put(cache)
    found = cache.find(name)
    assert found is not None
    np.testing.assert_array_equal(found.weights, weights())
    assert found.report == REPORT
    assert [one.id for one in found.documents] == [one.id for one in PASSAGES]
    assert [one.hash for one in found.documents] == [content_hash(one.text) for one in PASSAGES]
    assert cache.get(key(tenant="another")) is None
    assert (cache.hits, cache.misses, len(cache)) == (1, 2, 1)


def test_nobody_can_change_what_is_kept() -> None:
    cache, given_, report = AdapterCache(), weights(), {"losses": [1.0]}
    cache.put(key(), given_, PASSAGES, report)
    given_[:], report["losses"] = 0, []
    for _ in range(2):
        found = cache.find(key())
        assert found is not None
        assert (found.report["losses"], found.weights[0]) == ([1.0], weights()[0])
        found.report["losses"].clear()
        found.weights[:] = 0


def test_tensors_are_taken_as_they_come() -> None:
    import torch

    cache = AdapterCache()
    cache.put(key(), torch.nn.Parameter(torch.arange(3.0)), PASSAGES, REPORT)
    found = cache.get(key())
    assert found is not None
    assert found.dtype == np.float32
    assert torch.from_numpy(found).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("bad", "report", "message"),
    [
        (np.zeros((2, 2)), {}, r"shape \(2, 2\); wanted one flat"),
        (np.zeros(0), {}, "not empty row"),
        (np.array([1.0, np.nan]), {}, "NaN or infinite"),
        (np.array([1e300]), {}, "NaN or infinite"),
        (np.ones(2), {"config": object()}, "no plain data .*report.plain"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_cannot_be_an_adapter_is_refused(bad: Any, report: Any, message: str) -> None:
    cache = AdapterCache()
    with pytest.raises(ValueError, match=message):
        cache.put(key(), bad, PASSAGES, report)
    assert len(cache) == 0


@pytest.mark.parametrize("name", ["", "../../etc/passwd", key() + "/..", key().upper(), None])
def test_only_keys_are_keys(name: Any, tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    with pytest.raises(ValueError, match="is no key"):
        cache.get(name)
    with pytest.raises(ValueError, match="is no key"):
        cache.put(name, weights(), PASSAGES, REPORT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_bytes": 1e6}, "a whole number"),
        ({"ttl": 0}, "ttl is 0"),
        ({"ttl": float("inf")}, "or None"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterCache(**options)


def test_an_adapter_that_is_too_large_is_warned_of(tmp_path: Path) -> None:
    cache = AdapterCache(max_bytes=3000, folder=tmp_path)
    with pytest.warns(RuntimeWarning, match="exceeds max_bytes=3000"):
        put(cache)
    assert (len(cache), cache.bytes, list(tmp_path.iterdir())) == (0, 0, [])


ONES = {n: [Document(str(n), id=str(n))] for n in range(6)}
KEYS = {n: key(*ones) for n, ones in ONES.items()}


class Model(RuleBasedStateMachine):
    """The cache beside a list: the oldest first, (number, size, seed, made)."""

    TTL, ROOM = 10.0, 30_000

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.cache = AdapterCache(max_bytes=self.ROOM, ttl=self.TTL, clock=self.clock)
        self.kept: OrderedDict[int, tuple[int, int, float]] = OrderedDict()
        self.waited: dict[int, bool] = {}  # missed, and whether something was forgotten since
        self.hits = self.misses = 0

    @rule(n=st.sampled_from(list(ONES)), seed=st.integers(0, 9), size=st.integers(1, 8000))
    def put(self, n: int, seed: int, size: int) -> None:
        found = CachedAdapter(
            key=KEYS[n],
            created=self.clock.now,
            documents=tuple((one.id, "", content_hash(one.text)) for one in ONES[n]),  # type: ignore[misc]
            inherited=(),
            report=REPORT,
            weights=np.empty(0, np.float32),
        )
        self.expire()
        whole = 4 * size + len(found.text().encode())
        late = self.waited.pop(n, False)
        if whole > self.ROOM and not late:
            with pytest.warns(RuntimeWarning, match="exceeds"):
                self.cache.put(KEYS[n], weights(seed, size), ONES[n], REPORT)
            return
        self.cache.put(KEYS[n], weights(seed, size), ONES[n], REPORT)
        if late:
            return
        self.kept.pop(n, None)
        self.kept[n] = (whole, seed, self.clock.now)
        while sum(whole for whole, *_ in self.kept.values()) > self.ROOM:
            self.kept.popitem(last=False)

    @rule(n=st.sampled_from(list(ONES)))
    def get(self, n: int) -> None:
        self.expire()
        found = self.cache.get(KEYS[n])
        if n not in self.kept:
            assert found is None
            self.misses += 1
            self.waited[n] = False
            return
        assert found is not None
        np.testing.assert_array_equal(found, weights(self.kept[n][1], len(found)))
        self.kept.move_to_end(n)
        self.hits += 1

    @rule(n=st.sampled_from(list(ONES)))
    def forget(self, n: int) -> None:
        self.expire()
        assert self.cache.forget(str(n)) == int(self.kept.pop(n, None) is not None)
        self.waited = dict.fromkeys(self.waited, True)

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.5, 10.0, -0.5, -20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.expire()
        assert len(self.cache) == len(self.kept)
        assert self.cache.bytes == sum(whole for whole, *_ in self.kept.values()) <= self.ROOM
        assert (self.cache.hits, self.cache.misses) == (self.hits, self.misses)

    def expire(self) -> None:
        for n, (*_, made) in list(self.kept.items()):
            if not 0 <= self.clock.now - made < self.TTL:
                del self.kept[n]


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_threads_share_one() -> None:
    cache = AdapterCache(max_bytes=30_000)
    wrong: list[int] = []

    def work(me: int) -> None:
        for turn in range(200):
            n = (me + turn) % 6
            found = cache.get(KEYS[n])
            if found is None:
                cache.put(KEYS[n], weights(n), ONES[n], REPORT)
            elif not np.array_equal(found, weights(n)):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.hits + cache.misses == 800
    assert cache.bytes <= 30_000


# --- forgetting -------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> AdapterCache:
    return AdapterCache(folder=tmp_path / "cache" if request.param == "disk" else None)


def test_all_adapters_that_saw_a_document_go(anywhere: AdapterCache) -> None:
    one, two, three, _ = PASSAGES
    gone = [put(anywhere, one, two), put(anywhere, two), put(anywhere, two, tenant="another")]
    stays = put(anywhere, one, three)
    assert anywhere.forget(two.id) == 3
    assert [anywhere.get(name) for name in gone] == [None] * 3
    assert anywhere.get(stays) is not None
    assert anywhere.forget(two.id) == 0
    assert len(anywhere) == 1


def test_a_document_goes_with_its_passages(anywhere: AdapterCache) -> None:
    text = "One sentence is here. " * 20
    plain = split([Document(text, id="a.txt")], max_tokens=20)
    sourced = split([Document(text, {"source": "b.txt"}, "b")], max_tokens=20)
    for passages in (plain, sourced):
        put(anywhere, *passages[:3])
    other = put(anywhere, Document("An adapter of a.txt2.", id="a.txt2"))
    assert anywhere.forget("b.txt") == 1
    assert anywhere.forget("a.txt") == 1
    assert anywhere.get(other) is not None
    put(anywhere, *sourced[:3])
    assert anywhere.forget("b") == 1
    put(anywhere, *plain[:3])
    assert anywhere.forget(plain[0].id) == 1


def test_what_was_warm_started_saw_it_too(anywhere: AdapterCache) -> None:
    one, two, three, four = PASSAGES
    put(anywhere, one, two)
    for documents in ([two, three], [three, four]):  # each begins with the one before
        began = anywhere.closest(documents, base=BASE, config=CONFIG, tenant=TENANT, least=0.3)
        assert began is not None
        name = key(*documents)
        anywhere.put(name, weights(), documents, REPORT, began_with=began)
    assert anywhere.forget(one.id) == 3
    assert anywhere.get(name) is None


def test_what_was_being_trained_meanwhile_is_not_kept(anywhere: AdapterCache) -> None:
    assert anywhere.get(key()) is None
    anywhere.forget(PASSAGES[0].id)
    put(anywhere)
    assert anywhere.get(key()) is None
    put(anywhere)  # the next training began after
    anywhere.get(KEYS[0])
    anywhere.forget("another")
    anywhere.get(KEYS[0])  # a training that begins after
    assert anywhere.get(put(anywhere, *ONES[0])) is not None
    assert anywhere.get(key()) is not None


def test_nothing_is_no_document(anywhere: AdapterCache) -> None:
    put(anywhere)
    with pytest.raises(ValueError, match="document_id is ''"):
        anywhere.forget("")
    assert len(anywhere) == 1


def test_a_process_that_forgets_forgets_for_all(tmp_path: Path) -> None:
    one, two = AdapterCache(folder=tmp_path), AdapterCache(folder=tmp_path)
    put(one)
    assert two.get(key()) is not None
    assert one.forget(PASSAGES[0].id) == 1
    assert two.get(key()) is None
    assert not list(tmp_path.iterdir())


def test_what_a_dead_save_left_is_forgotten_too(tmp_path: Path) -> None:
    put(AdapterCache(folder=tmp_path))
    whole = adapter_file(tmp_path).read_bytes()
    adapter_file(tmp_path).unlink()
    left = [tmp_path / f"{digit * 32}.part" for digit in "abc"]
    for path, share in zip(left, (1.0, 0.7, 0.01), strict=True):
        path.write_bytes(whole[: int(share * len(whole))])
    cache = AdapterCache(folder=tmp_path)
    cache.forget("another")
    assert all(path.exists() for path in left)  # it may be saving right now
    cache.forget(PASSAGES[0].id)
    assert [path.exists() for path in left] == [False, False, True]  # no weights in the last


def test_what_cannot_be_forgotten_is_said(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    path = tmp_path / f"{key()}.safetensors"
    path.mkdir()
    with pytest.raises(OSError, match=r"1 adapters .* may still hold 'file0.md'"):
        cache.forget("file0.md")


# --- a warm start -----------------------------------------------------------------------------


def closest(cache: AdapterCache, *documents: Document, **changed: Any) -> CachedAdapter | None:
    known: dict[str, Any] = {"base": BASE, "config": CONFIG, "tenant": TENANT}
    return cache.closest(documents, **known | changed)


def test_the_closest_shares_most(anywhere: AdapterCache) -> None:
    one, two, three, four = PASSAGES
    put(anywhere, one, two, seed=1)
    put(anywhere, one, two, three, seed=2)
    found = closest(anywhere, three, two, one, four)
    assert found is not None
    np.testing.assert_array_equal(found.weights, weights(2))
    assert closest(anywhere, three, four) is None  # 1 of 4, and 0
    found = closest(anywhere, three, four, least=0.25)
    assert found is not None
    assert found.key == key(one, two, three)
    assert closest(anywhere, *(replace(one, text=one.text + "!") for one in PASSAGES)) is None
    assert closest(anywhere) is None
    assert (anywhere.hits, anywhere.misses) == (0, 0)


def test_the_closest_is_of_the_same_base_settings_and_tenant(anywhere: AdapterCache) -> None:
    put(anywhere)
    for changed in ({"tenant": "b"}, {"base": "b"}, {"config": {"rank": 2}}):
        assert closest(anywhere, *PASSAGES, **changed) is None
    assert closest(anywhere, *PASSAGES) is not None
    with pytest.raises(ValueError, match="least is 0; it must be above 0"):
        closest(anywhere, *PASSAGES, least=0)


def test_the_closest_may_lie_on_disk_and_be_gone(tmp_path: Path) -> None:
    before = AdapterCache(folder=tmp_path)
    best = put(before, *PASSAGES[:3], seed=1)
    put(before, *PASSAGES[:2], seed=2)
    cache = AdapterCache(folder=tmp_path)
    found = closest(cache, *PASSAGES)
    assert found is not None
    np.testing.assert_array_equal(found.weights, weights(1))
    (tmp_path / f"{best}.safetensors").unlink()  # by another process
    found = closest(cache, *PASSAGES)
    assert found is not None
    np.testing.assert_array_equal(found.weights, weights(2))


# --- on disk ----------------------------------------------------------------------------------


def test_another_process_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    name = put(AdapterCache(folder=folder))
    found = AdapterCache(folder=folder).find(name)
    assert found is not None
    np.testing.assert_array_equal(found.weights, weights())
    assert found.report == REPORT
    assert list(tmp_path.rglob("*.part")) == []


def test_the_folder_tells_nothing_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    before = os.umask(0)
    try:
        put(AdapterCache(folder=folder))
    finally:
        os.umask(before)
    path = adapter_file(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    content = path.read_bytes() + path.name.encode()
    assert TENANT.encode() not in content
    assert b"secret" not in content
    with safe_open(path, "numpy") as file:
        assert list(file.keys()) == ["weights"]
        assert json.loads(file.metadata()["entry"])["report"] == REPORT


def test_a_folder_is_meant_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = AdapterCache(folder="cache")
    monkeypatch.chdir(tmp_path / "elsewhere")
    put(cache)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert adapter_file(tmp_path / "cache")


def test_the_files_used_longest_ago_go(tmp_path: Path) -> None:
    clock = Clock()
    cache = AdapterCache(max_bytes=15_000, folder=tmp_path, clock=clock)
    for n in (0, 1, 2):
        put(cache, *ONES[n])
        clock.now += 1
    assert cache.get(KEYS[0]) is not None
    clock.now += 1
    put(cache, *ONES[3])
    there = {path.stem for path in tmp_path.iterdir()}
    assert there == {KEYS[0], KEYS[2], KEYS[3]}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 15_000


def test_a_clock_turned_back_does_not_keep_new_files_out(tmp_path: Path) -> None:
    clock = Clock()
    cache = AdapterCache(max_bytes=10_000, folder=tmp_path, clock=clock)
    put(cache, *ONES[0])
    put(cache, *ONES[1])
    clock.now -= 1e6
    put(cache, *ONES[2])
    assert cache.get(KEYS[2]) is not None
    assert (tmp_path / f"{KEYS[2]}.safetensors").exists()


@pytest.mark.parametrize(("seconds", "there"), [(9.9, True), (10, False), (-1, False)])
def test_what_has_expired_is_deleted(tmp_path: Path, seconds: float, there: bool) -> None:
    clock = Clock()
    name = put(AdapterCache(ttl=10, folder=tmp_path, clock=clock))
    clock.now += seconds
    cache = AdapterCache(ttl=10, folder=tmp_path, clock=clock)
    assert (cache.get(name) is not None) == there
    assert bool(list(tmp_path.iterdir())) == there


def test_what_nobody_asks_for_is_deleted_when_it_has_expired(tmp_path: Path) -> None:
    clock = Clock()
    put(AdapterCache(ttl=10, folder=tmp_path, clock=clock))
    clock.now += 10
    AdapterCache(ttl=10, folder=tmp_path, clock=clock)
    assert not list(tmp_path.iterdir())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "get", "forget", "wait", "restart"]), st.integers(0, 5)),
        max_size=40,
    )
)
def test_what_a_folder_gives_was_put_and_not_forgotten(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    clock, room, folder = Clock(), 16_000, tmp_path_factory.mktemp("cache")
    made: dict[int, tuple[int, float]] = {}

    def opened() -> AdapterCache:
        return AdapterCache(max_bytes=room, ttl=20, folder=folder, clock=clock)

    cache = opened()
    for seed, (what, n) in enumerate(steps):
        clock.now += 0.25
        if what == "put":
            cache.get(KEYS[n])
            put(cache, *ONES[n], seed=seed)
            made[n] = (seed, clock.now)
            assert cache.get(KEYS[n]) is not None
        elif what == "get" and (found := cache.get(KEYS[n])) is not None:
            np.testing.assert_array_equal(found, weights(made[n][0]))
            assert clock.now - made[n][1] < 20
        elif what == "forget":
            cache.forget(str(n))
            made.pop(n, None)
        elif what == "wait":
            clock.now += n
        elif what == "restart":
            cache = opened()
        assert sum(path.stat().st_size for path in folder.iterdir()) <= room
        assert cache.bytes <= room


# --- damage and forgery -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("saved")
    put(AdapterCache(folder=folder))
    return adapter_file(folder).read_bytes()


def assert_unusable(folder: Path, content: bytes | None = None, *, why: str = "") -> None:
    """A miss, one warning, and the file is gone."""
    path = folder / f"{key()}.safetensors"
    if content is not None:
        path.write_bytes(content)
    cache = AdapterCache(folder=folder)
    with pytest.warns(RuntimeWarning, match="not used, and deleted") as told:
        assert cache.find(key()) is None
    assert len(told) == 1
    assert why in str(told[0].message)
    assert cache.misses == 1
    assert not os.path.lexists(path)
    with silence():
        assert cache.find(key()) is None


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, saved: bytes, place: float, bit: int
) -> None:
    damaged = bytearray(saved)
    # Half of the places in the header, which is short.
    at = int(2 * place * 900) if place < 0.5 else int(len(saved) * (2 * place - 1))
    damaged[at] ^= 1 << bit
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"{key()}.safetensors"
    path.write_bytes(damaged)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = AdapterCache(folder=folder).find(key())
    if found is not None:  # a space for a space, a name of what is not looked at
        np.testing.assert_array_equal(found.weights, weights())
        assert found.report == REPORT
        assert [one.id for one in found.documents] == [one.id for one in PASSAGES]
    else:
        assert not path.exists()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 1500, -4000, -1])
def test_a_truncated_file_is_found(tmp_path: Path, saved: bytes, length: int) -> None:
    assert_unusable(tmp_path, saved[:length])


def test_more_than_there_was_is_found(tmp_path: Path, saved: bytes) -> None:
    assert_unusable(tmp_path, saved + b"\0\0\0\0", why="holds no weights")


def forged(entry: object, tensor: Any = None, *, name: str = "weights", **changed: str) -> bytes:
    """A file with right checksums, whatever it says."""
    tensor = weights() if tensor is None else tensor
    text = entry if isinstance(entry, str) else json.dumps(entry)
    known = {"entry": text, "weights": content_hash("")}
    from hashlib import sha256

    known["weights"] = sha256(tensor.tobytes()).hexdigest()
    known["checksum"] = content_hash(known["entry"] + known["weights"])
    return save({name: tensor}, known | changed)


def entry(**changed: Any) -> dict[str, Any]:
    known = {"format": "sift_rag.adapter", "version": 1, "key": key(), "created": 1e9}
    return known | {"documents": [], "inherited": [], "report": {}} | changed


def test_a_forgery_with_right_checksums_is_read(tmp_path: Path) -> None:
    """So that the tests below fail for what they name."""
    (tmp_path / f"{key()}.safetensors").write_bytes(forged(entry()))
    assert AdapterCache(folder=tmp_path).find(key()) is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (forged(entry(key=key(tenant="b"))), "under another key"),
        (forged(entry(key="../../outside")), "under another key"),
        (forged(entry(version=2)), "format and version"),
        (forged(entry(format="another")), "format and version"),
        (forged(entry(created="now")), "not understood"),
        (forged(entry(created=10**400)), "not understood"),
        (forged(entry(documents=[["id", "source"]])), "not understood"),
        (forged(entry(documents=[[1, 2, 3]])), "not understood"),
        (forged(entry(documents=7)), "not understood"),
        (forged(entry(report="losses")), "not understood"),
        (forged("[" * 100_000), "not understood"),
        (forged("[]"), "not understood"),
        (forged(entry(), checksum="0" * 64), "checksum is wrong"),
        (forged(entry(), weights().reshape(10, 100)), "shape (10, 100)"),
        (forged(entry(), weights().astype(np.float64)), "float64"),
        (forged(entry(), weights() * np.float32("nan")), "not finite"),
        (forged(entry(), name="other"), "holds no weights"),
        (save({"weights": weights()}), "header is damaged"),
        (save({"weights": weights()}, {"entry": "", "weights": ""}), "header is damaged"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        ((2).to_bytes(8, "little") + b"[]", "header is damaged"),
        ((21).to_bytes(8, "little") + b'{"__metadata__":null}', "header is damaged"),
        ((19).to_bytes(8, "little") + b'{"__metadata__":[]}', "header is damaged"),
        (b"\x80\x04cos\nsystem\n(S'false'\ntR.", "truncated"),  # a pickle
    ],
)
def test_a_forged_file_is_not_believed(tmp_path: Path, content: bytes, why: str) -> None:
    assert_unusable(tmp_path, content, why=why)


def test_an_adapter_moved_to_another_tenants_name_is_not_used(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    put(cache, tenant="another")
    adapter_file(tmp_path).rename(tmp_path / f"{key()}.safetensors")
    assert_unusable(tmp_path, why="under another key")


def test_links_are_not_followed(tmp_path: Path, saved: bytes) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "cache"
    outside.write_bytes(saved)
    folder.mkdir()
    link = folder / f"{key()}.safetensors"
    link.symlink_to(outside)
    assert_unusable(folder, why="symbolic link")
    for act in (lambda cache: put(cache), lambda cache: cache.forget("file0.md")):
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        act(AdapterCache(folder=folder))
        assert not link.is_symlink()
    link.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    AdapterCache(folder=folder, max_bytes=1)  # everything goes
    assert not os.path.lexists(link)
    assert (outside.read_bytes(), outside.stat().st_mtime_ns) == (saved, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{key()}.safetensors")
    assert_unusable(tmp_path, why="no regular file")


def test_a_folder_in_the_place_of_a_file_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / f"{key()}.safetensors").mkdir()
    cache = AdapterCache(folder=tmp_path)
    with pytest.warns(RuntimeWarning, match="it is a folder"):
        assert cache.get(key()) is None
    with silence():
        assert cache.get(key()) is None
    with pytest.warns(RuntimeWarning, match="kept in memory only"):
        put(cache)
    assert cache.get(key()) is not None


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = ["model.safetensors", key(), f"x{key()}.safetensors", f"{key()}.safetensors.bak"]
    for name in [*names, "0.part", ".hidden"]:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (1, 1))
    cache = AdapterCache(max_bytes=1, ttl=1, folder=tmp_path)
    cache.forget("anything")
    cache.closest(PASSAGES, base=BASE, config=CONFIG, tenant=TENANT)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "0.part", ".hidden"}


def test_a_larger_file_than_may_be_kept_is_not_read(tmp_path: Path, saved: bytes) -> None:
    cache = AdapterCache(max_bytes=4500, folder=tmp_path)
    (tmp_path / f"{key()}.safetensors").write_bytes(saved)  # by a process with more room
    assert len(saved) > 4500
    assert cache.get(key()) is None


# --- accidents --------------------------------------------------------------------------------


def test_a_folder_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = AdapterCache(folder=folder)
    name = put(cache)
    adapter_file(folder).unlink()
    folder.rmdir()
    assert cache.get(name) is None  # deleted is deleted
    assert cache.forget(PASSAGES[0].id) == 0
    put(cache)
    put(cache)
    assert adapter_file(folder)
    assert cache.get(name) is not None


def test_a_folder_that_became_a_file_costs_no_answer(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = AdapterCache(folder=folder)
    name = put(cache)
    adapter_file(folder).unlink()
    folder.rmdir()
    folder.write_text("mine")
    with pytest.warns(RuntimeWarning, match="could not be read"):
        assert cache.get(name) is None
    with pytest.warns(RuntimeWarning, match="in memory only"):
        put(cache)
    with silence():
        assert cache.get(KEYS[1]) is None
        put(cache, *ONES[0])
    assert cache.get(name) is not None
    assert folder.read_text() == "mine"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        AdapterCache(folder=tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        AdapterCache(folder=tmp_path / "file" / "cache")


def test_warnings_that_are_errors_cost_no_answer(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / f"{key()}.safetensors").write_bytes(b"damaged")
        cache = AdapterCache(folder=tmp_path)
        assert cache.get(key()) is None
        put(cache)
    assert cache.get(key()) is not None


@pytest.mark.skipif(os.name != "posix", reason="needs a user who may not write")
def test_a_read_only_folder_is_read(tmp_path: Path) -> None:
    """By a user who may not write there: root may."""
    code = """
        import os, sys, warnings
        import test_adapter_cache as there
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        cache = there.AdapterCache(folder=sys.argv[1])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert cache.get(there.key()) is not None
            for n in (0, 1):
                there.put(cache, *there.ONES[n])
                assert cache.get(there.KEYS[n]) is not None
            cache.find(there.KEYS[3])
        print([str(one.message) for one in told])
        try:
            cache.forget("file0.md")
        except OSError as error:
            print(error)
    """
    folder = tmp_path / "cache"
    put(AdapterCache(folder=folder))
    path = adapter_file(folder)
    modes = [(one, one.stat().st_mode) for one in (*tmp_path.parents[:3], tmp_path)]
    for one, mode in modes:
        one.chmod(mode | 0o055)
    folder.chmod(0o555)
    path.chmod(0o444)
    try:
        done = run_python(code, str(folder))
    finally:
        folder.chmod(0o700)
        for one, mode in modes:
            one.chmod(mode)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].count("Permission denied") == lines[0].count("kept in memory only") == 1
    assert "may still hold 'file0.md'" in lines[1]
    assert path.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs limits")
def test_a_full_disk_costs_no_answer(tmp_path: Path) -> None:
    """A real one: the kernel refuses to let a file grow."""
    code = """
        import resource, sys, warnings
        import test_adapter_cache as there
        cache = there.AdapterCache(folder=sys.argv[1])
        there.put(cache, *there.ONES[0])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for n in (1, 2):
                there.put(cache, *there.ONES[n])
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            there.put(cache, *there.ONES[3])
        assert all(cache.get(there.KEYS[n]) is not None for n in range(4))
        print([str(one.message) for one in told])
    """
    done = run_python(code, str(tmp_path))
    assert done.stdout.count("kept in memory only") == 1, done.stderr
    assert {path.stem for path in tmp_path.iterdir()} == {KEYS[0], KEYS[3]}


SAVES_FOREVER = """
import sys
import test_adapter_cache as there
cache = there.AdapterCache(folder=sys.argv[1], max_bytes=3_000_000)
print("ready", flush=True)
while True:
    for n in there.ONES:
        found = cache.get(there.KEYS[n])
        assert found is None or (found == there.weights(n, 100_000)).all()
        cache.put(there.KEYS[n], there.weights(n, 100_000), there.ONES[n], there.REPORT)
        if n == 5:
            cache.forget("0")
"""


def saving(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVES_FOREVER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_share_a_folder_until_they_are_killed(tmp_path: Path) -> None:
    cache = AdapterCache(folder=tmp_path)
    for _ in range(2):
        processes = [saving(tmp_path) for _ in range(2)]
        try:
            seen = 0
            while seen < 60:  # both are at work while a third one looks
                for n, name in KEYS.items():
                    found = cache.get(name)
                    if found is not None:
                        seen += 1
                        np.testing.assert_array_equal(found, weights(n, 100_000))
            assert [process.poll() for process in processes] == [None, None]
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                errors = process.communicate()[1]
                assert "Error" not in errors, errors
    for n, name in KEYS.items():
        found = AdapterCache(folder=tmp_path).get(name)
        assert found is None or (found == weights(n, 100_000)).all()


@pytest.mark.parametrize(("age", "there"), [(60, True), (4000, False), (-4000, False)])
def test_what_a_dead_save_left_goes_later(tmp_path: Path, age: float, there: bool) -> None:
    left = tmp_path / f"{'a' * 32}.part"
    cache = AdapterCache(folder=tmp_path)
    left.write_bytes(b"half")
    now = left.stat().st_mtime
    os.utime(left, (now - age, now - age))
    put(cache)
    assert left.exists() == there


def test_the_cache_costs_no_torch() -> None:
    code = """
        import sys
        from sift_rag.adapter_cache import AdapterCache
        print(sorted({"torch", "transformers", "peft"} & set(sys.modules)))
    """
    assert run_python(code).stdout == "[]\n"


def test_a_trainings_report_comes_back(tmp_path: Path) -> None:
    from sift_rag.training import TrainingReport

    report = TrainingReport(
        losses=(2.0, 1.0),
        steps=2,
        tokens=9,
        seconds=0.1,
        reset_seconds=0.0,
        stopped="completed",
        adapter_used=True,
        probes={"question": (1.0, None)},
    )
    for cache in (AdapterCache(), AdapterCache(folder=tmp_path)):
        cache.put(key(), weights(), PASSAGES, report.plain())
        found = cache.find(key())
        assert found is not None
        known = found.report | {
            "losses": tuple(found.report["losses"]),
            "probes": {name: tuple(pair) for name, pair in found.report["probes"].items()},
        }
        assert TrainingReport(**known) == report
