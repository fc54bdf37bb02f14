"""Where everything lies: artifacts by id, weights once by content, runs. Local folders and object stores alike.

Layout: `artifacts/<id>/{manifest.json, model.onnx, …}`, `weights/<sha[:2]>/<sha>`, `<sweep>/<run>/…`. The manifest
is written last, and nothing that exists is overwritten, so an artifact is either whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore

from llama_bench import external_data, node_cache, objects, threads
from llama_bench.errors import InputError, StoreError, WorkError

if TYPE_CHECKING:
    from obstore import ObjectMeta

RESERVED = ("artifacts", "weights")
"""Folders of a store that are no sweeps."""

PARTS = 12
"""Parts of weights on their way into the store at once, for as many weights as there are threads, or one for each."""

_HOUR = 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Store(objects.Objects):
    """A place for artifacts, weights and results: a folder, or `s3://`, `gs://`, `az://` through obstore.

    `cache` is where :meth:`fetch` puts its folders: `.cache` in a local store; elsewhere a folder of this store's own
    in `$LLAMA_BENCH_CACHE` or `~/.cache/llama_bench`. Raises InputError when the store cannot be opened, or (unless
    `write` is False) cannot be written.
    """

    def __init__(self, uri: str | Path, cache: Path | None = None, *, write: bool = True) -> None:
        super().__init__(uri, write=write)
        self.cache = node_cache.folder_of(self.uri, self.root, cache)

    def has(self, artifact_id: str) -> bool:
        """Return whether the artifact is there, whole."""
        return self.length(_manifest_key(artifact_id)) is not None

    def manifest(self, artifact_id: str) -> dict[str, Any]:
        """Return the artifact's manifest; WorkError when there is none, or it is torn or names files elsewhere."""
        key = _manifest_key(artifact_id)
        if not self.has(artifact_id):
            raise WorkError(f"store {self.label}: artifact {artifact_id} is not there (no {key})")
        try:
            manifest: dict[str, Any] = json.loads(self.get(key))
            for entry in manifest["files"]:
                for name in (entry["name"], entry["stored"]):
                    _plain(name, self.url(key))
                if not _SHA256.fullmatch(entry["sha256"]) or int(entry["bytes"]) < 0:
                    raise ValueError("a file without bytes and SHA-256")
            if not all(_SHA256.fullmatch(sha) and int(length) >= 0 for sha, length in manifest["weights"]):
                raise ValueError("a weight is not named by its SHA-256")
        except (ValueError, KeyError, TypeError) as error:
            raise WorkError(f"{self.url(key)}: torn, or not a manifest of llama_bench ({error!r})") from error
        return manifest

    def save(self, artifact_id: str, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """Save `folder` (model.onnx, its external data and other files) as an artifact, and return its manifest.

        A folder without model.onnx, such as a reference's, is saved as it is.

        Weights (tensors of at least 1 KiB) are cut out of the model and written under their SHA-256 unless they are
        there; the other files lie beside the manifest, which is written last. Saving an id that exists changes
        nothing. Adds to `manifest`: `files` (name, stored, bytes, sha256), `weights` ([sha256, bytes], sorted) and
        `graph_sha256`. Raises WorkError: no ONNX model, too little room, a failed write.
        """
        _plain(artifact_id, "an artifact's id")
        if self.has(artifact_id):
            return self.manifest(artifact_id)
        has_graph = (folder / external_data.GRAPH).is_file()
        parts = external_data.cut(folder) if has_graph else external_data.Cut(b"", {}, frozenset())
        files = {external_data.GRAPH: memoryview(parts.graph)} if has_graph else {}
        files |= {path.name: external_data.map_file(path) for path in _other_files(folder, parts.sources)}
        new = {sha: data for sha, data in parts.weights.items() if self.length(weight_key(sha)) != len(data)}
        needed = sum(map(len, new.values())) + sum(map(len, files.values()))
        room = self.free_bytes()
        if room is not None and room < needed:
            raise StoreError(
                f"store {self.label} has too little room for artifact {artifact_id}: "
                f"{needed:,} bytes needed, {room:,} free"
            )
        threads.each(lambda sha: self._stream(weight_key(sha), new[sha], needed), new)
        entries = [self._put_file(artifact_id, name, data) for name, data in files.items()]
        whole = manifest | {
            "id": artifact_id,
            "files": entries,
            "weights": [[sha, len(data)] for sha, data in sorted(parts.weights.items())],
            "graph_sha256": entries[0]["sha256"] if has_graph else None,
        }
        self.put(_manifest_key(artifact_id), json.dumps(whole, indent=1, sort_keys=True).encode())
        return self.manifest(artifact_id)

    def fetch(self, artifact_id: str, into: Path | None = None) -> Path:
        """Return a folder on this node with the artifact's model.onnx, its weights (by SHA-256) and its other files.

        The folder is shared: never change it. A local store is linked to, not copied; what is copied or downloaded is
        verified. onnx and onnx_ir refuse external data with several hard links: read such a folder with
        :func:`llama_bench.graph.load`, or give `into`, a folder of your own that gets plain copies.
        Raises WorkError, which names the file, when the artifact is incomplete, truncated or altered.
        """
        return node_cache.fetch(self, _plain(artifact_id, "an artifact's id"), into)

    def _put_file(self, artifact_id: str, name: str, data: memoryview) -> dict[str, Any]:
        sha = hashlib.sha256(data).hexdigest()
        stored = name
        if not self.put(f"artifacts/{artifact_id}/{name}", data) and not self._equals(artifact_id, name, sha):
            # A half-saved artifact left another file here, or somebody else is saving it now: keep clear of both.
            stored = f"{sha[:16]}-{name}"
            self.put(f"artifacts/{artifact_id}/{stored}", data)
        return {"name": name, "stored": stored, "bytes": len(data), "sha256": sha}

    def _equals(self, artifact_id: str, name: str, sha: str) -> bool:
        digest = hashlib.sha256()
        for chunk in self.chunks(f"artifacts/{artifact_id}/{name}"):
            digest.update(chunk)
        return digest.hexdigest() == sha

    def _stream(self, key: str, data: memoryview, needed: int) -> None:
        """Write a weight in parts. Two writers of one weight write the same bytes, and either may win."""
        with self.guard(f"writing {key}", needed):
            obstore.put(
                self._objects,
                key,
                (data[start : start + objects.CHUNK] for start in range(0, len(data), objects.CHUNK)),
                use_multipart=True,
                chunk_size=objects.CHUNK,
                max_concurrency=max(1, PARTS // threads.count()),
            )


def reopen(uri: str) -> Store:
    """Return the store at an address that the driver works with: what is wrong with it now may pass.

    Raises StoreError.
    """
    try:
        return Store(uri)
    except InputError as error:
        raise StoreError(str(error)) from error


@dataclass(frozen=True)
class CleanReport:
    """What :func:`clean` removed (or would remove): artifacts, weights, and the bytes of both and of the cache."""

    artifacts: int
    weights: int
    bytes: int


def clean(store: Store, keep: set[str], *, dry_run: bool = False) -> CleanReport:
    """Remove the artifacts that are not in `keep`, the weights that no other artifact names, and their cache.

    Half-saved artifacts, and weights that no manifest ever named, go when they are older than an hour: something may
    be saving them now. Manifests go first, so that whatever stops this halfway leaves no artifact that looks whole.
    """
    young = time.time() - _HOUR
    folders: dict[str, list[ObjectMeta]] = {}
    for meta in store.list("artifacts"):
        folders.setdefault(meta["path"].split("/")[1], []).append(meta)
    whole = {name for name, metas in folders.items() if any(meta["path"] == _manifest_key(name) for meta in metas)}
    torn = {name for name in set(folders) - whole if all(_written(meta) < young for meta in folders[name])}
    kept_weights = {sha for name in whole & keep for sha, _ in store.manifest(name)["weights"]}
    free_weights = {sha for name in whole - keep for sha in _weights_if_readable(store, name)} - kept_weights
    weights = [
        meta
        for meta in store.list("weights")
        if (sha := meta["path"].rpartition("/")[2]) in free_weights
        or (sha not in kept_weights and _written(meta) < young)
    ]
    gone = sorted((whole - keep) | torn)
    files = [meta for name in gone for meta in folders[name]]
    staged = _staged(store, young)
    freed = sum(meta["size"] for meta in [*files, *weights]) + sum(path.stat().st_size for path in staged)
    if not dry_run:
        store.delete(map(_manifest_key, gone))
    freed += node_cache.clean(store.cache, keep, young, dry_run=dry_run)
    if not dry_run:
        store.delete(meta["path"] for meta in [*files, *weights])
        for path in staged:
            path.unlink(missing_ok=True)
        for name in gone if store.root is not None else []:
            shutil.rmtree(Path(store.url(f"artifacts/{name}")), ignore_errors=True)
    return CleanReport(len(gone), len(weights), freed)


def _weights_if_readable(store: Store, artifact_id: str) -> list[str]:
    try:
        return [sha for sha, _ in store.manifest(artifact_id)["weights"]]
    except WorkError:  # torn: its weights go once they are an hour old
        return []


def _staged(store: Store, young: float) -> list[Path]:
    """Return what killed writers left in a local store: obstore writes `<key>#<n>` and renames it."""
    if store.root is None:
        return []
    found = [path for name in RESERVED for path in (store.root / name).rglob("*#*")]
    return [path for path in found if path.stat().st_mtime < young]


def weight_key(sha256: str) -> str:
    """Return the key of a weight."""
    return f"weights/{sha256[:2]}/{sha256}"


def _manifest_key(artifact_id: str) -> str:
    return f"artifacts/{_plain(artifact_id, 'an artifact')}/manifest.json"


def _written(meta: ObjectMeta) -> float:
    return meta["last_modified"].timestamp()


def _plain(name: str, where: str) -> str:
    """Return `name` when it is the bare name of a file; otherwise it could lead out of its folder."""
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise WorkError(f"{where}: {name!r} is not the bare name of a file")
    return name


def _other_files(folder: Path, sources: frozenset[str]) -> list[Path]:
    """Return what lies beside the model in `folder`; unused weights of a fetched folder are left behind."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.name not in {external_data.GRAPH, *sources} and not _SHA256.fullmatch(path.name)
    )
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise WorkError(f"{path}: an artifact holds plain files only")
    return paths
