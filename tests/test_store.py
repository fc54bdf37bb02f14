"""Artifacts and weights on disk: what is saved comes back, once, whole, or with a message that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from llama_bench import external_data
from llama_bench.errors import InputError, StoreError, WorkError
from llama_bench.store import CleanReport, Store, clean, weight_key

LARGE = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)  # 4 KiB: cut out
SMALL = np.ones(32, dtype=np.float32)  # 128 B: stays inside


def model(*, scale: float = 1.0, typed: bool = False, extra_node: bool = False) -> onnx.ModelProto:
    """y = x · large · large + small; `typed` writes the weight number by number instead of as raw bytes."""
    large = LARGE * np.float32(scale)
    weight = (
        helper.make_tensor("w", TensorProto.FLOAT, large.shape, large.ravel())
        if typed
        else numpy_helper.from_array(large, "w")
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Add", ["b", "s"], ["c" if extra_node else "y"]),
    ]
    if extra_node:
        nodes.append(helper.make_node("Identity", ["c"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [weight, numpy_helper.from_array(SMALL, "s")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(folder: Path, proto: onnx.ModelProto, *, external: str | None = None) -> Path:
    folder.mkdir(parents=True)
    if external:
        onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(proto, folder / "model.onnx")
    return folder


def run(folder: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 32), np.float32)})[0]


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def disk(store: Store) -> int:
    assert store.root is not None
    return sum({p.stat().st_ino: p.stat().st_size for p in store.root.rglob("*") if p.is_file()}.values())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a store")


# --- saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [None, "all.bin"], ids=["inline", "external"])
def test_a_saved_model_comes_back_and_runs_the_same(store: Store, tmp_path: Path, external: str | None) -> None:
    folder = write(tmp_path / "m", model(), external=external)
    (folder / "reference.safetensors").write_bytes(b"reference")
    manifest = store.save("id1", folder, {"label": "export"})
    fetched = store.fetch("id1")
    np.testing.assert_array_equal(run(fetched), run(folder))
    assert sorted(path.name for path in fetched.iterdir()) == sorted(
        ["model.onnx", "reference.safetensors", sha(LARGE)]
    )
    assert manifest["label"] == "export" and manifest["weights"] == [[sha(LARGE), LARGE.nbytes]]
    assert manifest == store.manifest("id1") and store.has("id1") and not store.has("id2")
    assert manifest["graph_sha256"] == hashlib.sha256((fetched / "model.onnx").read_bytes()).hexdigest()


def test_the_saved_graph_is_the_same_however_its_weights_were_laid_out(store: Store, tmp_path: Path) -> None:
    layouts = {
        "raw": write(tmp_path / "raw", model()),
        "typed": write(tmp_path / "typed", model(typed=True)),
        "one-file": write(tmp_path / "one", model(), external="all.bin"),
    }
    store.save("first", layouts["raw"], {})
    layouts["fetched"] = store.fetch("first")
    assert len({external_data.cut(folder).graph for folder in layouts.values()}) == 1
    assert len({store.save(name, folder, {})["graph_sha256"] for name, folder in layouts.items()}) == 1
    assert store.keys("weights") == [weight_key(sha(LARGE))]


def test_weights_inside_nested_graphs_and_constants_survive(store: Store, tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [32, 32])],
        [numpy_helper.from_array(LARGE, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["e"], value=numpy_helper.from_array(LARGE * 2, "constant"))],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [32, 32])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["w"], then_branch=then, else_branch=other),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(np.array(True), "c")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = write(tmp_path / "m", proto)
    store.save("nested", folder, {})
    np.testing.assert_array_equal(run(store.fetch("nested")), run(folder))


def test_a_pass_that_changes_little_costs_a_small_file(store: Store, tmp_path: Path) -> None:
    store.save("original", write(tmp_path / "m", model()), {})
    store.fetch("original")
    before = disk(store)
    store.save("changed", write(tmp_path / "n", model(extra_node=True), external="w.bin"), {})
    store.fetch("changed")
    assert 0 < disk(store) - before < 20_000
    assert len(store.keys("weights")) == 1
    linked = store.cache / "changed" / sha(LARGE)
    assert os.path.samefile(linked, store.cache / "original" / sha(LARGE)), "linked, not copied"


def test_weights_that_are_there_are_not_written_again(store: Store, tmp_path: Path) -> None:
    store.save("one", write(tmp_path / "m", model()), {})
    weight = Path(store.url(weight_key(sha(LARGE))))
    inode = weight.stat().st_ino
    store.save("two", write(tmp_path / "n", model(extra_node=True)), {})
    assert weight.stat().st_ino == inode
    weight.write_bytes(b"cut off")  # as a power failure leaves it
    store.save("three", write(tmp_path / "o", model(typed=True)), {})
    assert weight.read_bytes() == LARGE.tobytes(), "a truncated weight is mended"


def test_saving_an_id_that_exists_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = store.save("id", write(tmp_path / "m", model()), {"n": 1})
    before = disk(store)
    assert store.save("id", write(tmp_path / "n", model(scale=2)), {"n": 2}) == first
    assert disk(store) == before


def test_a_half_saved_artifact_does_not_spoil_the_next_attempt(store: Store, tmp_path: Path) -> None:
    store.put("artifacts/id/model.onnx", b"half")
    store.put("artifacts/id/reference.safetensors", b"half")
    assert not store.has("id")
    folder = write(tmp_path / "m", model())
    (folder / "reference.safetensors").write_bytes(b"whole")
    store.save("id", folder, {})
    np.testing.assert_array_equal(run(store.fetch("id")), run(folder))
    assert (store.fetch("id") / "reference.safetensors").read_bytes() == b"whole"


def test_savers_of_one_id_at_once_leave_one_whole_artifact(store: Store, tmp_path: Path) -> None:
    folders = [write(tmp_path / str(n), model()) for n in range(6)]
    for n, folder in enumerate(folders):
        (folder / "reference.safetensors").write_bytes(bytes([n]) * 1000)  # as torch on different machines gives
    with ThreadPoolExecutor(6) as pool:
        saved = list(pool.map(lambda n: Store(store.uri).save("id", folders[n], {"n": n}), range(6)))
    assert all(manifest == saved[0] for manifest in saved)
    assert set((store.fetch("id") / "reference.safetensors").read_bytes()) == {saved[0]["n"]}


def test_unused_weights_of_a_copied_folder_are_left_behind(store: Store, tmp_path: Path) -> None:
    store.save("one", write(tmp_path / "m", model()), {})
    copied = store.fetch("one", into=tmp_path / "copied")
    (copied / "model.onnx").unlink()
    onnx.save(model(scale=3), copied / "model.onnx")
    assert [entry["name"] for entry in store.save("two", copied, {})["files"]] == ["model.onnx"]


# --- bad models -------------------------------------------------------------------------------------------------


def test_external_data_that_is_cut_off_is_named(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", model(), external="all.bin")
    os.truncate(folder / "all.bin", 100)
    with pytest.raises(WorkError, match=r"all\.bin: truncated.*'w'"):
        store.save("id", folder, {})
    (folder / "all.bin").unlink()
    with pytest.raises(WorkError, match=r"all\.bin: missing"):
        store.save("id", folder, {})
    assert store.keys("") == []


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "..", "sub/w.bin", "a\\b", ""])
def test_external_data_never_leaves_its_folder(store: Store, tmp_path: Path, location: str) -> None:
    folder = write(tmp_path / "m", model(), external="all.bin")
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(WorkError, match="no file beside it"):
        store.save("id", folder, {})


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("location", ["../../../secret", "absolute"])
def test_an_artifact_whose_data_would_lie_elsewhere_is_not_fetched(
    store: Store, tmp_path: Path, location: str, into: bool
) -> None:
    (tmp_path / "secret").write_bytes(LARGE.tobytes())
    manifest = store.save("id", write(tmp_path / "m", model()), {})
    saved = Path(store.url("artifacts/id/model.onnx"))
    proto = onnx.load(saved, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = str(tmp_path / "secret") if location == "absolute" else location
    saved.write_bytes(proto.SerializeToString())
    [entry] = manifest["files"]  # whoever wrote the graph wrote its hash too
    entry |= {"bytes": saved.stat().st_size, "sha256": hashlib.sha256(saved.read_bytes()).hexdigest()}
    store.put("artifacts/id/manifest.json", json.dumps(manifest).encode(), create=False)
    with pytest.raises(WorkError, match=r"keeps its data at .*secret', which is no file beside it"):
        store.fetch("id", into=tmp_path / "copy" if into else None)
    assert not (store.cache / "id").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"not a model", lambda data: b""])
def test_a_torn_model_is_named(store: Store, tmp_path: Path, damage) -> None:
    folder = write(tmp_path / "m", model())
    (folder / "model.onnx").write_bytes(damage((folder / "model.onnx").read_bytes()))
    with pytest.raises(WorkError, match=r"model\.onnx: truncated, or not an ONNX model"):
        store.save("id", folder, {})


def test_a_link_in_a_folder_is_refused(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", model())
    (folder / "secrets").symlink_to("/etc/passwd")
    with pytest.raises(WorkError, match="plain files only"):
        store.save("id", folder, {})


# --- fetching ---------------------------------------------------------------------------------------------------


def test_processes_that_fetch_at_once_all_get_a_whole_folder(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", model())
    store.save("id", folder, {})
    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(lambda _: Store(store.uri).fetch("id"), range(16)))
    assert set(fetched) == {store.cache / "id"}
    assert [path.name for path in store.cache.iterdir()] == ["id"], "no temporary folder stays"
    np.testing.assert_array_equal(run(fetched[0]), run(folder))


def test_a_truncated_weight_is_named_even_when_the_folder_was_fetched_before(store: Store, tmp_path: Path) -> None:
    store.save("id", write(tmp_path / "m", model()), {})
    store.fetch("id")
    os.truncate(store.url(weight_key(sha(LARGE))), 100)
    with pytest.raises(WorkError, match=f"{sha(LARGE)}: truncated or altered: 100 bytes instead of 4,096"):
        store.fetch("id")
    Path(store.url(weight_key(sha(LARGE)))).unlink()
    with pytest.raises(WorkError, match=f"{sha(LARGE)}: missing, though artifact id needs it"):
        Store(store.uri, cache=tmp_path / "other").fetch("id")


def test_altered_content_is_found_by_its_hash(store: Store, tmp_path: Path) -> None:
    store.save("id", write(tmp_path / "m", model()), {})
    graph = Path(store.url("artifacts/id/model.onnx"))
    good = graph.read_bytes()
    graph.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(WorkError, match=r"artifacts/id/model\.onnx: altered"):
        store.fetch("id")
    graph.write_bytes(good)
    weight = Path(store.url(weight_key(sha(LARGE))))
    weight.write_bytes(bytes(LARGE.nbytes))
    with pytest.raises(WorkError, match=f"{sha(LARGE)}: truncated or altered"):
        store.fetch("id", into=tmp_path / "copy")


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"name": "../../evil", "stored": "model.onnx", "bytes": 1, "sha256": "0" * 64}]},
        {"files": [{"name": "model.onnx", "stored": "../x", "bytes": 1, "sha256": "0" * 64}]},
        {"weights": [["../../etc/passwd", 1]]},
        {"files": None},
    ],
)
def test_a_manifest_that_is_torn_or_leads_elsewhere_is_refused(store: Store, tmp_path: Path, change: dict) -> None:
    manifest = store.save("id", write(tmp_path / "m", model()), {})
    store.put("artifacts/id/manifest.json", json.dumps(manifest | change).encode(), create=False)
    with pytest.raises(WorkError, match=r"manifest\.json"):
        store.fetch("id")
    with pytest.raises(WorkError, match="bare name"):
        store.fetch("../id")


def test_an_artifact_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(WorkError, match="artifact nothing is not there"):
        store.fetch("nothing")


def test_a_copy_of_ones_own_can_be_read_by_onnx(store: Store, tmp_path: Path) -> None:
    store.save("id", write(tmp_path / "m", model()), {})
    store.fetch("id")
    copy = store.fetch("id", into=tmp_path / "copy")
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(copy / "model.onnx").graph.initializer[0]), LARGE)


# --- remote stores ----------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path) -> Store:
    return Store("memory://bucket", cache=tmp_path / "cache")


def test_a_remote_artifact_is_downloaded_once_and_its_weights_are_shared(remote: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", model())
    remote.save("one", folder, {})
    remote.save("two", write(tmp_path / "n", model(extra_node=True)), {})
    one, two = remote.fetch("one"), remote.fetch("two")
    np.testing.assert_array_equal(run(one), run(folder))
    assert os.path.samefile(one / sha(LARGE), two / sha(LARGE))
    remote.delete([weight_key(sha(LARGE)), "artifacts/one/model.onnx"])
    assert remote.fetch("one") == one, "nothing is asked of the store again but the manifest"
    assert remote.root is None and remote.free_bytes() is None and one.is_relative_to(tmp_path / "cache")


def test_altered_remote_content_is_found_by_its_hash(remote: Store, tmp_path: Path) -> None:
    remote.save("id", write(tmp_path / "m", model()), {})
    remote.put(weight_key(sha(LARGE)), bytes(LARGE.nbytes), create=False)
    with pytest.raises(WorkError, match=f"{sha(LARGE)}: truncated or altered"):
        remote.fetch("id")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*")), "what is wrong is not kept"


def test_the_cache_of_a_remote_store_evicts_what_was_fetched_longest_ago(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 5):
        remote.save(f"id{n}", write(tmp_path / str(n), model(scale=n)), {})
    monkeypatch.setenv("LLAMA_BENCH_CACHE_BYTES", "10500")  # room for two
    folders = {n: remote.fetch(f"id{n}") for n in (1, 2)}
    long_ago = time.time() - 7200
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    remote.fetch("id1")
    remote.fetch("id3")
    assert folders[1].exists() and not folders[2].exists()
    remote.fetch("id4")
    assert folders[1].exists(), "what was fetched within the hour stays, bound or not"
    monkeypatch.setenv("LLAMA_BENCH_CACHE_BYTES", "5 GB")
    with pytest.raises(InputError, match="LLAMA_BENCH_CACHE_BYTES is '5 GB'"):
        remote.fetch("id2")


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(tmp_path / "mine"))
    assert Store("memory://bucket").cache.is_relative_to(tmp_path / "mine")
    assert Store(tmp_path / "local").cache == tmp_path / "local" / ".cache"


# --- keys and places --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["local", "memory"])
def test_only_one_of_two_writers_of_a_key_wins(tmp_path: Path, place: str) -> None:
    store = Store(tmp_path / "s" if place == "local" else "memory://x", cache=tmp_path / "c")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put("a/b", bytes([n])), range(8)))
    assert won.count(True) == 1 and store.get("a/b") == bytes([won.index(True)])
    assert store.put("a/b", b"new", create=False) and store.get("a/b") == b"new"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_keys_are_listed_whole_sorted_and_without_what_is_hidden(tmp_path: Path, place: str) -> None:
    store = Store(tmp_path / "s" if place == "local" else "memory://x", cache=tmp_path / "c")
    for key in ("b/2", "b/10", "a/x/1", "bb/1", ".cache/z"):
        store.put(key, b"12")
    assert store.keys("b") == ["b/10", "b/2"] and store.keys("") == ["a/x/1", "b/10", "b/2", "bb/1"]
    assert store.keys("nothing") == [] and store.folders("") == ["a", "b", "bb"] and store.folders("a") == ["x"]
    assert store.size("b") == 4 and store.length("b/2") == 2 and store.length("b/3") is None
    assert store.tail("b/2", 1) == b"2" and store.tail("b/2", 9) == b"12"
    store.delete(["b/2", "b/nothing"])
    assert store.keys("b") == ["b/10"]
    with pytest.raises(WorkError, match="reading b/2 failed"):
        store.get("b/2")


def test_a_local_store_knows_its_room_its_paths_and_survives_pickling(store: Store) -> None:
    assert store.root is not None and store.url("a/b") == str(store.root / "a/b")
    free = store.free_bytes()
    assert free is not None and free > 0
    other = pickle.loads(pickle.dumps(store))
    other.put("k", b"v")
    assert store.get("k") == b"v"


@pytest.mark.parametrize("below", ["file", "file/below", "file/a/b"])
def test_a_store_at_or_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"cannot be written: {tmp_path}/file is a file"):
        Store(tmp_path / below)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(InputError, match="store /proc/self cannot be written"):
        Store("/proc/self")


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Store(tmp_path / "nothing", write=False)
    assert not (tmp_path / "nothing").exists()


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown scheme 'gcs'; did you mean 'gs'\?"):
        Store("gcs://bucket/x")


@pytest.mark.parametrize("uri", ["s3://AKIA:SECRET@bucket/x", "s3://bucket/x?sig=SECRET", "s4://u:SECRET@bucket/x"])
def test_credentials_are_refused_in_an_address_and_never_printed(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        Store(uri)
    assert "SECRET" not in str(caught.value) and "bucket/x" in str(caught.value)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    class Full(Store):
        def free_bytes(self) -> int:
            return 1000

    store = Full(tmp_path / "s")
    with pytest.raises(WorkError, match=rf"store {tmp_path}/s has too little room.*4,\d+ bytes needed, 1,000 free"):
        store.save("id", write(tmp_path / "m", model()), {})
    assert store.keys("") == []


def test_a_disk_that_fills_up_names_the_store_and_the_bytes(store: Store, tmp_path: Path) -> None:
    """The operating system's limit on a file's size stands in for the end of the disk: it fails the same way."""
    folder = write(tmp_path / "m", model())
    script = (
        "import resource, sys; from pathlib import Path; from llama_bench.store import Store\n"
        "store = Store(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "try: store.save('id', Path(sys.argv[2]), {})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, store.uri, folder], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"StoreError store {store.uri} has no room left while writing weights/")
    assert "bytes needed" in done.stdout and not store.has("id")
    store.save("id", folder, {})
    np.testing.assert_array_equal(run(store.fetch("id")), run(folder))


# --- cleaning ---------------------------------------------------------------------------------------------------


def test_clean_keeps_what_is_needed_and_removes_the_rest(store: Store, tmp_path: Path) -> None:
    for name, scale in (("keep", 1), ("shares", 1), ("drop", 2)):
        store.save(name, write(tmp_path / name, model(scale=scale)), {"name": name})
        store.fetch(name)
    before = disk(store)
    report = clean(store, {"keep"}, dry_run=True)
    assert disk(store) == before, "a dry run removes nothing"
    assert clean(store, {"keep"}) == report
    assert (report.artifacts, report.weights, report.bytes) == (2, 1, before - disk(store))
    assert store.keys("weights") == [weight_key(sha(LARGE))]
    assert store.folders("artifacts") == ["keep"] and [path.name for path in store.cache.iterdir()] == ["keep"]
    run(store.fetch("keep"))
    assert clean(store, {"keep"}) == CleanReport(0, 0, 0)


def test_clean_leaves_alone_what_may_be_being_saved(store: Store) -> None:
    data = b"x" * 2000
    weight = weight_key(hashlib.sha256(data).hexdigest())
    store.put("artifacts/half/model.onnx", b"half")
    store.put(weight, data)
    staged = Path(store.url("weights/ab/abc#1"))
    staged.parent.mkdir()
    staged.write_bytes(b"staged")
    assert clean(store, set()) == CleanReport(0, 0, 0)
    long_ago = time.time() - 7200
    for path in (store.url("artifacts/half/model.onnx"), store.url(weight), staged):
        os.utime(path, (long_ago, long_ago))
    assert clean(store, {"half"}) == CleanReport(1, 1, 2010)
    assert store.keys("") == [] and not staged.exists()


def test_clean_never_touches_results(store: Store) -> None:
    store.put("sweep/run/pieces/p.parquet", b"rows")
    clean(store, set())
    assert store.keys("") == ["sweep/run/pieces/p.parquet"]


def test_clean_stops_before_removing_anything_when_a_needed_manifest_is_torn(store: Store, tmp_path: Path) -> None:
    for name in ("keep", "drop"):
        store.save(name, write(tmp_path / name, model()), {})
    store.put("artifacts/keep/manifest.json", b"{", create=False)
    with pytest.raises(WorkError, match=r"artifacts/keep/manifest\.json: torn"):
        clean(store, {"keep"})
    assert store.has("drop")
    store.put("artifacts/drop/manifest.json", b"{", create=False)
    clean(store, set())
    assert store.keys("artifacts") == []


def test_a_patient_store_waits_until_its_place_is_back_and_says_once_why(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "store"), list[str]()
    assert store.root is not None
    (store.root / "a").touch()  # no folder, so that nothing can be written into it
    with pytest.raises(StoreError, match="writing a/b failed"):
        store.put("a/b", b"")

    def tell(why: str) -> None:
        told.append(why)
        threading.Timer(1.5, (store.root / "a").unlink).start()  # type: ignore[union-attr]

    assert store.patient(200, tell).put("a/b", b"1")
    assert len(told) == 1
    assert "writing a/b failed" in told[0]
    assert store.get("a/b") == b"1"


def test_patience_ends_and_what_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.root is not None
    (store.root / "a").touch()
    begin = time.monotonic()
    with pytest.raises(StoreError):
        store.patient(1.2, lambda why: None).put("a/b", b"")
    assert 1.2 <= time.monotonic() - begin < 60
    begin = time.monotonic()
    with pytest.raises(WorkError) as missing:
        store.patient(200, lambda why: None).get("nothing")
    assert not isinstance(missing.value, StoreError)
    assert time.monotonic() - begin < 60
