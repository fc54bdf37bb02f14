"""Who does a piece of a run: claims in the store, so that two drivers never do the same work and no dead one blocks it.

`<run>/claims/<piece>-<n>.json` names the driver that took the piece at its n-th try. It is written create-only, so of
two drivers one gets it. `<run>/drivers/<driver>.json` is that driver's heartbeat, written over and over: while it is
young the claim holds; when it is older than LEASE_S its driver is dead, and the next claim of the piece is free to
take. Ages are differences between the store's own times of writing, so no two clocks are compared. A driver of this
machine is dead as soon as its process is gone: who starts a killed run again need not wait.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import psutil

from llama_bench.errors import StoreError, WorkError
from llama_bench.store import Store

LEASE_S = 90.0
"""Seconds after its last heartbeat for which a driver counts as alive."""

BEATS = 6
"""Heartbeats in a lease: so many in a row must fail before others take the work."""

_CLAIM = re.compile(r"(?P<piece>.+)-(?P<number>\d{4})\.json")


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver as others are told of it: its own id, where it runs, since when."""

    id: str
    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.since}"


class Claims:
    """The claims of one driver on the pieces of one run. A context manager, which ends the heartbeat and lets go."""

    def __init__(self, store: Store, run: str, lease_s: float = LEASE_S) -> None:
        self.store, self.run, self.lease_s = store, run, lease_s
        self._heart = store
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.driver = Driver(secrets.token_hex(8), socket.gethostname(), os.getpid(), now)
        self.held: dict[str, str] = {}  # piece → key of our claim
        self.inherited: dict[str, Driver] = {}  # piece that was taken → the dead driver that had it
        self._left: dict[str, str] = {}  # piece → key of that driver's claim
        self._end = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Claims:
        self._write_heartbeat()
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._beating.join()
        try:
            self.release(list(self.held))
            self.store.delete([self._heartbeat_key(self.driver.id)])
        except WorkError:  # a store that is gone says so where work is lost; what stays here expires
            return

    def wait_with(self, store: Store) -> None:
        """Use `store`, the same place with patience, for all but the heartbeat, which comes again by itself."""
        self.store = store

    def take(self, piece: str) -> Driver | None:
        """Take `piece` for this driver; return None, or the living driver that has it.

        Raises WorkError when the store cannot be read or written.
        """
        while piece not in self.held:
            number, key = self._newest(piece)
            driver = None if key is None else _driver(self.store, key)
            if key is not None and driver == self.driver:  # written by a try of ours whose answer was lost
                self.held[piece] = key
                return None
            if driver is not None and self._is_alive(driver):
                return driver
            if driver is not None:
                self.inherited[piece] = driver
            mine = f"{self.run}/claims/{piece}-{number + 1:04d}.json"
            if self.store.put(mine, json.dumps(asdict(self.driver)).encode()):
                self.held[piece] = mine
                if driver is not None and key is not None:
                    self._left[piece] = key
        return None

    def release(self, pieces: Iterable[str]) -> None:
        """Let go of `pieces` that this driver has; of others nothing happens.

        The claim of the dead driver that had a piece before goes too: that it was lost is known by now.
        """
        for piece in pieces:
            key = self.held.pop(piece, None)
            if key is None:
                continue
            if (left := self._left.pop(piece, None)) is not None:
                self.store.delete([left])
            if _driver(self.store, key) == self.driver:  # else we were thought dead, and its number is another's
                self.store.delete([key])

    def left_behind(self) -> set[str]:
        """Return the pieces that somebody has a claim on, dead or alive: what a killed driver had is among them."""
        found = (_CLAIM.fullmatch(key.rpartition("/")[2]) for key in self.store.keys(f"{self.run}/claims"))
        return {match["piece"] for match in found if match is not None}

    def others(self) -> list[Driver]:
        """Return the other drivers that work on this run now."""
        found = []
        for key in self.store.keys(f"{self.run}/drivers"):
            driver = _driver(self.store, key)
            if driver is not None and driver.id != self.driver.id and self._is_alive(driver):
                found.append(driver)
        return found

    def _newest(self, piece: str) -> tuple[int, str | None]:
        """Return number and key of the last claim of `piece`, or −1 and None."""
        found: tuple[int, str | None] = (-1, None)
        for key in self.store.keys(f"{self.run}/claims"):
            match = _CLAIM.fullmatch(key.rpartition("/")[2])
            if match is not None and match["piece"] == piece and int(match["number"]) > found[0]:
                found = int(match["number"]), key
        return found

    def _is_alive(self, driver: Driver) -> bool:
        written = {key: meta.timestamp() for key, meta in self.store.written(f"{self.run}/drivers").items()}
        theirs, ours = (written.get(self._heartbeat_key(one)) for one in (driver.id, self.driver.id))
        if driver.host == self.driver.host and not _runs_here(driver):
            return False
        if theirs is None or ours is None:  # it has ended; or ours was deleted, and nobody's age can be told
            return theirs is not None
        return ours - theirs < self.lease_s

    def _beat(self) -> None:
        while not self._end.wait(self.lease_s / BEATS):
            try:
                self._write_heartbeat()
            except WorkError:  # the next one may work; if none does, others take over, as they should
                continue

    def _write_heartbeat(self) -> None:
        said: dict[str, Any] = asdict(self.driver)
        self._heart.put(self._heartbeat_key(self.driver.id), json.dumps(said).encode(), create=False)

    def _heartbeat_key(self, driver: str) -> str:
        return f"{self.run}/drivers/{driver}.json"


def _driver(store: Store, key: str) -> Driver | None:
    """Return the driver that a claim or a heartbeat names, None when it was deleted since it was listed, or is torn."""
    try:
        return Driver(**json.loads(store.get(key)))
    except StoreError:  # it may live: who cannot ask must not take its work
        raise
    except (WorkError, ValueError, TypeError):
        return None


def _runs_here(driver: Driver) -> bool:
    """Whether the process of a driver of this machine is still there, and no later one with its number."""
    try:
        return bool(psutil.Process(driver.pid).create_time() <= datetime.fromisoformat(driver.since).timestamp() + 1)
    except psutil.Error:
        return False


def alive(store: Store, run: str, lease_s: float = LEASE_S) -> list[Driver]:
    """Return the drivers that work on `run` now, by the heartbeats in the store and this machine's clock.

    For showing, not for deciding: that clock may differ from the store's.
    """
    now = datetime.now(UTC)
    young = [key for key, at in store.written(f"{run}/drivers").items() if (now - at).total_seconds() < lease_s]
    found = [driver for key in young if (driver := _driver(store, key)) is not None]
    return sorted(found, key=lambda driver: (driver.since, driver.id))
