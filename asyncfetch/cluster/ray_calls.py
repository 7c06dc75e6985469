"""Ray, as far as every file here needs it: whether it is there, what calls give, and what its errors mean."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import AsyncfetchError, DiskFullError, NetworkError, SourceError
from ..tasks import off_loop
from ..words import fit_to_show

__all__ = ["answer", "connect", "is_lost", "placed_at", "plain", "ray_module", "result"]

_LOOK = 0.5  # seconds between two looks at whether the wait for an answer was cancelled


def ray_module() -> Any:
    """Ray. Raises SourceError where it is not installed. Takes a while the first time."""
    try:
        import ray
        import ray.exceptions
        import ray.util.client
        import ray.util.scheduling_strategies
    except ImportError as error:
        hint = "Run: pip install 'asyncfetch[ray]', on each node of the cluster."
        raise SourceError("ray is not installed.", hint=hint) from error
    return ray


def connect(address: str = "auto") -> None:
    """Be a driver of the cluster at `address`; "auto": that of RAY_ADDRESS, or of this machine. Blocks.

    Who is one already stays one. Raises SourceError where there is no cluster, or it would be driven from outside.
    """
    ray = ray_module()
    if address.startswith("ray://") or (ray.is_initialized() and ray.util.client.ray.is_connected()):
        hint = "Run it on a node of the cluster, as `ray job submit` does."
        raise SourceError("A cluster cannot be driven from outside, by a ray:// address.", hint=hint)
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        hint = "Start one (`ray start --head`), set RAY_ADDRESS, or call ray.init() before."
        raise SourceError(f"No cluster of Ray was found: {fit_to_show(str(error))}", hint=hint) from error


async def result(ref: Any) -> Any:
    """What a call gives, on any event loop: Ray's own `await` knows asyncio alone. Raises what `plain` makes of it."""
    ray = ray_module()
    while True:
        try:
            return await off_loop(partial(ray.get, ref, timeout=_LOOK), abandon=True)
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayError as error:
            raise plain(error) from error


async def answer(ref: Any) -> Any:
    """What a call gives, in an actor or a task, where the loop is asyncio's. Raises what `plain` makes of it."""
    ray = ray_module()
    try:
        return await ref
    except ray.exceptions.RayError as error:
        raise plain(error) from error


def plain(error: Exception) -> Exception:
    """What an error of Ray means: the error that was raised there, or one of ours for what befell Ray itself."""
    ray = ray_module()
    if isinstance(error, ray.exceptions.RayTaskError):
        cause: Any = getattr(error, "cause", None)
        while isinstance(cause, ray.exceptions.RayTaskError):
            cause = cause.cause
        if isinstance(cause, AsyncfetchError):
            return cause
        if isinstance(cause, ImportError):
            missing = SourceError(f"A node of the cluster cannot run asyncfetch: {cause}.")
            missing.hint = "Install the same version of asyncfetch[ray] on each node."
            return missing
        if isinstance(cause, Exception):
            return plain(cause) if isinstance(cause, ray.exceptions.RayError) else cause
    if isinstance(error, ray.exceptions.ObjectStoreFullError | ray.exceptions.OutOfDiskError):
        full = DiskFullError("The object store of Ray", needed=0, free=None)
        full.hint = "Start Ray with a larger --object-store-memory, or release what it holds."
        return full
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hint = "A node or a process of the cluster ended under it: `ray status` and the logs of Ray tell why."
    return NetworkError(f"{type(error).__name__}: {said}".rstrip("."), url="ray", hint=hint)


def is_lost(error: BaseException) -> bool:
    """Whether an error of `answer` says that an actor, and so mostly its node, is not there any more."""
    return isinstance(error.__cause__, ray_module().exceptions.RayActorError)


def placed_at(node: str, *, soft: bool) -> Any:
    """The strategy that places work at a node; with `soft`, at another one if that is dead."""
    return ray_module().util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=soft)
