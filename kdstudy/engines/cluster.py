"""Runs trained by the workers of any Dask cluster, while this process keeps the store and its locks."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from threading import Event as Flag
from typing import Any
from urllib.parse import urlsplit

from kdstudy.engines.event import Event
from kdstudy.engines.session import Session
from kdstudy.errors import KDStudyError
from kdstudy.runs import Run
from kdstudy.store import Store

LOOKING = 2.0  # seconds after which it looks who works
ANSWER = 10.0  # seconds in which a scheduler answers


class Cluster:
    """The engine that trains by the workers of a Dask cluster.

    Workers need neither the client's disk nor its user: what a run needs is given to them, what comes of it is taken
    home. Whoever reaches a scheduler can execute anything there, so one that is not on this machine has to be
    reached by TLS.

    Args:
        client: a `dask.distributed.Client`, or a scheduler's address, such as "tls://cluster:8786"; the files of TLS
            are those of Dask's configuration (`distributed.comm.tls`).
        resources: what a worker needs to be given a run, such as ``{"GPU": 1}``.

    Raises:
        KDStudyError: if nobody answers there, others could join in, a worker is unfit, or none has the resources.
    """

    def __init__(self, client: Any, resources: Mapping[str, float] | None = None) -> None:
        self.resources = dict(resources or {})
        self._own = isinstance(client, str)
        if not self._own:
            _check_client(client)
        self.client: Any = _connected(client) if self._own else client
        self._side, self._due, self._met = 0, 0.0, False
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The scheduler's address."""
        return str(self.client.scheduler.address)

    @property
    def side(self) -> int:
        """How many runs its workers train at a time."""
        return self._side

    def close(self) -> None:
        """Leave the cluster, if it was joined by its address; it goes on."""
        if self._own:
            self.client.close()

    def look(self) -> int:
        """Look who works there, now and then.

        Returns:
            How many runs its workers train at a time.

        Raises:
            KDStudyError: if a worker is unfit, or none has the resources that are needed.
        """
        if (now := time.monotonic()) >= self._due and self.client.status == "running":
            self._due = now + LOOKING
            try:
                info = self.client.scheduler_info(n_workers=-1)
            except Exception:  # if it is gone, all its tasks end
                return self._side
            workers = info["workers"]
            check_private([info["address"], *workers])
            _check_threads(workers)
            fit = sum(_has(worker["resources"], self.resources) for worker in workers.values())
            if workers and not fit and not self._met:  # one that was there may come back
                raise _lacking(self.resources, workers)
            self._side, self._met = fit, self._met or bool(fit)
        return self._side

    def execute(self, runs: Sequence[Run], store: Store, stop: Flag | None = None) -> Generator[Event, None, None]:
        """Train runs; see `Engine`."""
        yield from Session(self.client, runs, store, self.look, self.resources).events(stop)


def _check_client(client: Any) -> None:
    """Refuse what is no client that can be asked from here."""
    if not hasattr(client, "submit"):
        raise KDStudyError(f"engine: is a {type(client).__name__}, must be a Client of it: dask.distributed.Client(it)")
    if getattr(client, "asynchronous", False):
        raise KDStudyError("engine: is an asynchronous Client, must be made without asynchronous=True")
    if client.status != "running":
        raise KDStudyError(f"engine: is a Client that is {client.status}, must be connected")


def _connected(address: str) -> Any:
    """Return a client of the scheduler at an address.

    Raises:
        KDStudyError: if others could join in, or nobody answers.
    """
    from distributed import Client

    check_private([address])
    check_tls(address)
    try:
        return Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        tls = "; one that was started with TLS is at tls://..." if address.startswith("tcp:") else ""
        raise KDStudyError(f"engine {address!r}: no Dask scheduler answers there ({said}){tls}") from None


def check_tls(address: str) -> None:
    """Refuse an address that needs TLS where nothing names the files for it.

    Args:
        address: the scheduler's.

    Raises:
        KDStudyError: saying which variables name them.
    """
    from distributed.security import Security

    if address.startswith("tls:") and not Security().get_connection_args("client").get("ssl_context"):
        raise KDStudyError(
            f"{address}: TLS needs the files that DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like name "
            "(CLUSTERS.md says how)"
        )


def has_tls() -> bool:
    """Return whether Dask's configuration names the files that TLS needs, of schedulers and of workers."""
    from distributed.security import Security

    security: Any = Security()
    return all((security.tls_ca_file, security.tls_scheduler_cert, security.tls_worker_cert))


def check_private(addresses: Iterable[str]) -> None:
    """Refuse an address at which others could have something executed.

    Args:
        addresses: of schedulers and workers.

    Raises:
        KDStudyError: naming the first that is neither on this machine alone nor protected by TLS.

    Example:
        >>> check_private(["tcp://127.0.0.1:8786", "tls://10.0.0.5:8786"])
        >>> check_private(["tcp://10.0.0.5:8786"])
        Traceback (most recent call last):
        kdstudy.errors.KDStudyError: tcp://10.0.0.5:8786: whoever reaches it can execute anything there: off this ...
    """
    for address in addresses:
        try:
            scheme, host = urlsplit(address).scheme, urlsplit(address).hostname or ""
        except ValueError as error:
            raise KDStudyError(f"{address}: is no address ({error})") from None
        if scheme not in ("tls", "inproc") and not is_loopback(host):
            raise KDStudyError(
                f"{address}: whoever reaches it can execute anything there: off this machine it must be tls://, "
                "or come through a tunnel to 127.0.0.1 (CLUSTERS.md says how)"
            )


def with_scheme(place: str) -> str:
    """Return the address that is probably meant where it is not said how a scheduler is reached.

    Args:
        place: its host and port.

    Example:
        >>> with_scheme("cluster.org:8786")
        'tls://cluster.org:8786'
    """
    host = place.rpartition(":")[0].strip("[]")
    return f"{'tcp' if is_loopback(host) and not has_tls() else 'tls'}://{place}"


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is of this machine alone.

    Example:
        >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_threads(workers: Mapping[str, Mapping[str, Any]]) -> None:
    for address, worker in workers.items():
        if worker["nthreads"] != 1:
            raise KDStudyError(
                f"the worker at {address} trains {worker['nthreads']} runs at a time, must be 1: two in one process "
                "would disturb each other's random numbers; start it with --nthreads 1"
            )
        if address.startswith("inproc:"):
            raise KDStudyError(
                f"the worker at {address} is a thread of this process, must be a process of its own: "
                "LocalCluster(processes=True, threads_per_worker=1)"
            )


def _has(own: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    return all(own.get(name, 0) >= amount for name, amount in needed.items())


def _lacking(needed: Mapping[str, float], workers: Mapping[str, Mapping[str, Any]]) -> KDStudyError:
    """Return what to say where nobody has the resources that are needed."""
    there = {text for worker in workers.values() for text in _texts(worker["resources"])}
    some = f"{len(workers)} worker{'s' * (len(workers) > 1)}"
    have = f"they have {', '.join(sorted(there))}" if there else "they were started without --resources"
    return KDStudyError(f"resources {', '.join(_texts(needed))}: none of {some} has that; {have}")


def _texts(resources: Mapping[str, float]) -> list[str]:
    return [f"{name}={amount:g}" for name, amount in resources.items()]
