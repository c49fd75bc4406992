"""Which of several workers is the best for a build with machines."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from buildbot.process.build import Build
from buildbot.process.properties import Properties
from twisted.internet import defer
from twisted.python import log

from buildbot_kvm.pool import machines_of_factory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildbot_kvm.pool import Pool


def next_worker(builder: Any, workers: list[Any], request: Any) -> defer.Deferred[Any]:
    """Choose, of the workers that can start a build now, the one where it has its machine soonest.

    For ``nextWorker`` of a builder, or for all builders at once::

        c["select_next_worker"] = buildbot_kvm.next_worker

    It prefers a worker that has a machine of the build's image ready, then one that clones it from a template, then
    the one with the most free slots, and of equals takes any. Workers that lack the image come last, and so do those
    that are no KVMWorker, if the build uses machines.
    """
    return defer.ensureDeferred(_next_worker(builder, workers, request))


async def _next_worker(builder: Any, workers: list[Any], request: Any) -> Any:
    if not workers:
        return None
    properties = Properties()
    await Build.setup_properties_known_before_build_starts(properties, [request], builder, workers[0])
    images = await images_of(builder, properties)
    best = max(_worth(wfb.worker, images) for wfb in workers)
    return random.choice([wfb for wfb in workers if _worth(wfb.worker, images) == best])


async def images_of(builder: Any, properties: Any) -> list[str]:
    """Give the images of a builder's builds with these properties, as far as they tell before one begins."""
    images = []
    for step in machines_of_factory(builder.config.factory):
        try:
            image = await properties.render(step.image)
        except Exception as why:
            # It may depend on what a step finds out.
            log.msg(f"builder {builder.name}: an image is not known before its build begins: {why!r}")
            continue
        if isinstance(image, str):
            images.append(image)
    return images


def has_all(worker: Any, images: Iterable[str]) -> bool:
    """Tell whether a worker has images, as far as it is known; one that is no KVMWorker has none."""
    pool = pool_of(worker)
    return pool is not None and all(map(pool.has, images))


def pool_of(worker: Any) -> Pool | None:
    """Give what is known of a worker's machines; None if it is no KVMWorker, or was never connected."""
    pool: Pool | None = getattr(worker, "pool", None)
    return pool


def _worth(worker: Any, images: list[str]) -> tuple[bool, int, int, int]:
    """Give what makes one worker better than another: what counts most comes first."""
    pool = pool_of(worker)
    if not images or pool is None:
        return (False, 0, 0, 0)
    warm = sum(pool.warm.get(image, 0) > 0 for image in images)
    return (has_all(worker, images), warm, sum(image in pool.templates for image in images), pool.free)
