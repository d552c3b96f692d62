"""Which versions are in memory, and which of them answers for a model: it follows the registry's aliases.

A swap loads and warms up the new version beside the old one, holds both by the lease, and then moves one pointer, so
that no request waits or fails. The version before it stays loaded: a rollback moves the pointer back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cilseg.errors import CilsegError, ConflictError, FaultCollector, NotExportedError, NotFoundError, did_you_mean
from cilseg.registry import Registry, Version
from cilseg.registry.leases import Lease, hold
from cilseg.registry.policy import renamed_ids
from cilseg.registry.references import parse_reference
from cilseg_serve.segmenter import Segmenter
from cilseg_serve.server.deployment import Deployment, load_segmenter
from cilseg_serve.server.errors import BadRequestError, UnavailableError
from cilseg_serve.server.settings import ServerSettings

_logger = logging.getLogger(__name__)
_RETRY_S = 30.0
MakeDeployment = Callable[[Version, Segmenter], Deployment]


@dataclass
class Served:
    """One model: the reference that is followed, the versions in memory, and the one that answers by default."""

    name: str
    ref: str
    alias: str | None
    loaded: dict[int, Deployment] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    """Versions that were asked for by number."""
    beside: dict[str, int] = field(default_factory=dict)
    """Further references that are followed, such as ``animals@candidate``, and where they point."""
    default: int | None = None
    previous: int | None = None
    following: bool = True
    fault: str | None = None
    """Why the version that the alias points to is not served."""
    failed: tuple[str, float] | None = None
    """Digest of that version, and when it is tried again."""


class ModelPool:
    """The models of one server. Methods belong to the event loop; the registry and loading are used in threads."""

    def __init__(
        self,
        registry: Registry,
        settings: ServerSettings,
        *,
        make: MakeDeployment,
        on_retired: Callable[[Deployment], None] | None = None,
    ) -> None:
        self.registry, self.settings = registry, settings
        self._make, self._on_retired = make, on_retired
        self.models: dict[str, Served] = {}
        self._lease: Lease | None = None
        self._lease_until = 0.0
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    # Requests

    def find(self, model: str, version: int | None = None) -> Deployment:
        """Return the version that answers for ``model``.

        Raises:
            NotFoundError: no such model or version is served.
            UnavailableError: the model is known, and not loaded.
        """
        served = self.models.get(model)
        if served is None:
            known = ", ".join(self.models) or "none"
            raise NotFoundError(
                f"There is no model {model[:100]!r} here.{did_you_mean(model[:100], self.models)} Served: {known}."
            )
        number = served.default if version is None else version
        found = served.loaded.get(number) if number is not None else None
        if found is not None:
            return found
        if version is None:
            raise UnavailableError(f"{model} is not loaded{f': {served.fault}' if served.fault else ''}.")
        loaded = ", ".join(map(str, sorted(served.loaded))) or "none"
        raise NotFoundError(
            f"Version {version} of {model} is not loaded; loaded: {loaded}. Load it with POST "
            f'/v2/repository/models/{model}/load and {{"parameters": {{"version": "{version}"}}}}.'
        )

    def only_model(self) -> str:
        """Return the one model that is served.

        Raises:
            BadRequestError: several, or none.
        """
        if len(self.models) != 1:
            raise BadRequestError(f"Name one of the models with ?model=: {', '.join(self.models) or 'none is served'}.")
        return next(iter(self.models))

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return bool(self.models) and all(m.default is not None for m in self.models.values() if m.following)

    # Loading

    async def start(self) -> None:
        """Load everything that the settings name; without names, every model of the registry that is exported.

        Raises:
            CilsegError: a reference names nothing, or a version cannot be loaded; all of them.
            NotExportedError: without names, no model is exported.
        """
        refs = self.settings.refs or tuple(await asyncio.to_thread(self.registry.names))
        if not refs:
            raise NotFoundError("The registry holds no model yet. Run `cilseg train` or `cilseg demo` first.")
        faults = FaultCollector("Models to serve")
        errors: list[CilsegError] = []
        left_out: list[str] = []
        for ref in refs:
            try:
                await self._add(ref)
            except CilsegError as error:
                if isinstance(error, NotExportedError) and not self.settings.refs:
                    left_out.append(ref)
                    continue
                errors.append(error)
                faults.add(f"{ref}: {error}")
        if len(errors) == 1:
            raise errors[0]
        faults.raise_if_any(error=type(errors[0]) if errors else CilsegError)
        if left_out and not self.models:
            raise NotExportedError(
                f"No model of the registry has an exported model to serve ({', '.join(left_out)}). Make one with: "
                "cilseg export REF"
            )
        if left_out:
            _logger.warning("Not served, for want of an exported model (cilseg export REF): %s", ", ".join(left_out))

    async def _add(self, ref: str) -> None:
        parsed = parse_reference(ref)
        version = await asyncio.to_thread(self.registry.resolve, ref)
        fixed = parsed.number is not None or parsed.digest_prefix is not None
        served = self.models.get(version.name)
        followed = version.ref if fixed else ref if parsed.name else f"{version.name}{ref}"
        if served is None:
            served = Served(version.name, followed, None if fixed else parsed.alias, default=version.number)
        elif not fixed:
            served.beside[followed] = version.number
        async with self._lock:
            await self._load(served, version)
        served.pinned |= {version.number} if fixed else set()
        self.models[version.name] = served

    async def load(self, model: str, number: int | None = None) -> Deployment:
        """Load a model of the registry, or another version of it; a version loaded by number stays until unloaded.

        Raises:
            NotFoundError: no such model or version.
            ConflictError: too many versions are in memory.
            CilsegError: it cannot be loaded.
        """
        served = self.models.get(model)
        if number is None:
            version = await asyncio.to_thread(self.registry.resolve, served.ref if served else model)
        else:
            version = await asyncio.to_thread(self.registry.resolve, f"{model}:{number}")
        if served is None:
            served = Served(model, model, None)
        in_memory = sum(len(m.loaded) for m in self.models.values())
        if in_memory >= self.settings.max_loaded and version.number not in served.loaded:
            raise ConflictError(
                f"{in_memory} versions are in memory, at most {self.settings.max_loaded} may be. Unload one first."
            )
        async with self._lock:
            deployment = await self._load(served, version)
            self.models[model] = served
            if number is not None:
                served.pinned.add(number)
            if number is None or served.default is None:
                served.default, served.following, served.fault = version.number, True, None
            self._retire(served)
        return deployment

    async def unload(self, model: str, number: int | None = None) -> None:
        """Let a model, or one version of it, go; requests in flight are answered.

        Raises:
            NotFoundError: it is not served.
            ConflictError: the version answers for the model.
        """
        async with self._lock:
            served = self.models.get(model)
            if served is None:
                self.find(model)  # raises, with what is served
                return
            if number is None:
                served.default = served.previous = None
                served.following = False
                served.pinned.clear()
                served.beside.clear()
            else:
                self.find(model, number)
                if number == served.default:
                    raise ConflictError(
                        f"{model}:{number} answers for {model}. Move the alias first, or unload the whole model."
                    )
                served.pinned.discard(number)
                served.previous = None if served.previous == number else served.previous
            self._retire(served)

    # Following

    def poke(self) -> None:
        """Look at the registry now: an alias was moved here."""
        self._wake.set()

    async def follow(self) -> None:
        """Follow the aliases until cancelled. An unreachable registry is logged; what is loaded goes on."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.settings.poll_s)
            self._wake.clear()
            try:
                await self.poll()
            except Exception:
                _logger.exception("The registry could not be followed; trying again")

    async def poll(self) -> None:
        """Look once where the aliases point, swap what moved, and renew the lease. Never raises CilsegError."""
        async with self._lock:
            for served in list(self.models.values()):
                if not served.following:
                    continue
                try:
                    version = await asyncio.to_thread(self.registry.resolve, served.ref)
                    if version.number != served.default:
                        await self._swap(served, version)
                    served.fault, served.failed = None, None
                    await self._follow_beside(served)
                except (CilsegError, OSError) as error:
                    if served.fault != str(error):
                        _logger.error("%s is not followed: %s", served.ref, error)
                    served.fault = str(error)
            if time.monotonic() > self._lease_until - self.settings.lease_s / 2:
                await self._hold([])

    async def _swap(self, served: Served, version: Version) -> None:
        if served.failed is not None and served.failed[0] == version.digest and time.monotonic() < served.failed[1]:
            raise CilsegError(served.fault or f"{version.ref} cannot be loaded.")
        current = served.loaded.get(served.default) if served.default is not None else None
        await asyncio.to_thread(self._check_names, served, current, version)
        try:
            await self._load(served, version)
        except (CilsegError, OSError):
            served.failed = (version.digest, time.monotonic() + _RETRY_S)
            raise
        served.previous, served.default = served.default, version.number
        _logger.info("%s: %s answers now, before it %s", served.ref, version.number, served.previous)
        self._retire(served)

    async def _follow_beside(self, served: Served) -> None:
        for ref, number in list(served.beside.items()):
            version = await asyncio.to_thread(self.registry.resolve, ref)
            if version.number != number:
                await self._load(served, version)
                served.beside[ref] = version.number
                self._retire(served)

    def _check_names(self, served: Served, current: Deployment | None, version: Version) -> None:
        """Refuse ids that change their names, unless that was consented to: here, or with the move of the alias."""
        renamed = renamed_ids(current.segmenter.class_set, version.manifest.class_set) if current is not None else []
        if not renamed or self.settings.class_change:
            return
        moves = self.registry.history(served.name, alias=served.alias or "production")
        if moves and moves[-1].to_number == version.number and moves[-1].class_change:
            return
        raise ConflictError(
            f"{version.ref} gives ids another name ({'; '.join(renamed)}), so readers of its masks would mistake one "
            "class for another. Promote it with --class-change, or start the server with --class-change."
        )

    async def _load(self, served: Served, version: Version) -> Deployment:
        found = served.loaded.get(version.number)
        if found is not None:
            return found
        await self._hold([version])
        segmenter = await asyncio.to_thread(load_segmenter, self.registry, version, self.settings)
        deployment = served.loaded[version.number] = self._make(version, segmenter)
        return deployment

    async def _hold(self, more: Sequence[Version]) -> None:
        """Renew the lease on everything in memory and on ``more``."""
        held: Iterable[Version] = (d.version for m in self.models.values() for d in m.loaded.values())
        versions = list({v.digest: v for v in (*held, *more)}.values())
        try:
            if self._lease is not None:
                await asyncio.to_thread(self._lease.renew, versions)
            elif versions:
                self._lease = await asyncio.to_thread(
                    lambda: hold(self.registry, versions, expires_after_s=self.settings.lease_s)
                )
        except (CilsegError, OSError) as error:
            if more and isinstance(error, CilsegError):
                raise
            # Mounted read-only, so that gc cannot run there either; or out of reach, then it is tried again.
            _logger.warning("No lease on the versions in memory: %s", error)
        self._lease_until = time.monotonic() + self.settings.lease_s

    def _retire(self, served: Served) -> None:
        keep = {served.default, served.previous, *served.pinned, *served.beside.values()}
        for number in [n for n in served.loaded if n not in keep]:
            deployment = served.loaded.pop(number)
            task = asyncio.create_task(self._let_go(deployment))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _let_go(self, deployment: Deployment) -> None:
        await deployment.close()
        if self._on_retired is not None:
            self._on_retired(deployment)

    async def close(self) -> None:
        """Let everything go and release the lease."""
        deployments = [d for m in self.models.values() for d in m.loaded.values()]
        await asyncio.gather(*(d.close() for d in deployments), *self._closing)
        if self._lease is not None:
            try:
                await asyncio.to_thread(self._lease.release)
            except (CilsegError, OSError) as error:
                _logger.warning("The lease was not released and will run out: %s", error)
