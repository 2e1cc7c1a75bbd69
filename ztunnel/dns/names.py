"""Which names a question may mean: Kubernetes' short forms, search domains and wildcards.

A name is held as a tuple of lower-case labels without the root, `("web", "prod", "svc")`:
comparison is then plain equality (RFC 4343: names compare without regard to case).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A name to look up for a question.

    `stripped` is the name the client had in mind when its resolver had put a search domain behind
    it, or None where the question's own name is meant.
    """

    name: Labels
    stripped: Labels | None = None


def labels(text: str) -> Labels:
    """The labels of a host name in text form; a final dot changes nothing."""
    return tuple(part for part in text.lower().rstrip(".").split(".") if part)


def assumed_search_domains(namespace: str, cluster_domain: Labels) -> tuple[Labels, ...]:
    """What the kubelet writes into a pod's resolv.conf under the policy ClusterFirst."""
    return (
        (namespace, "svc", *cluster_domain),
        ("svc", *cluster_domain),
        cluster_domain,
    )


def candidates(
    name: Labels, namespace: str, cluster_domain: Labels, search_domains: tuple[Labels, ...]
) -> list[Candidate]:
    """The names that a question for `name` from `namespace` may mean, the likeliest first.

    The name itself and its Kubernetes forms come before what is left when a search domain is
    taken off. No name is listed twice.
    """
    found: dict[Labels, Candidate] = {}
    for full in _with_kubernetes_forms(name, namespace, cluster_domain):
        found.setdefault(full, Candidate(full))
    for domain in search_domains:
        short = name[: -len(domain)] if domain else ()
        if not short or name[-len(domain) :] != domain:
            continue
        for full in _with_kubernetes_forms(short, namespace, cluster_domain):
            found.setdefault(full, Candidate(full, stripped=short))
    return list(found.values())


def wildcards(name: Labels) -> Iterator[Labels]:
    """The wildcard names that cover `name`, the closest first: `*.rest` down to `*.tld`."""
    for cut in range(1, len(name)):
        yield ("*", *name[cut:])


def is_wildcard(name: Labels) -> bool:
    return bool(name) and name[0] == "*"


def _with_kubernetes_forms(name: Labels, namespace: str, domain: Labels) -> Iterator[Labels]:
    yield name
    match len(name):
        case 1:  # web
            yield (*name, namespace, "svc", *domain)
        case 2:  # web.prod, or the first two labels of a service within our namespace
            yield (*name, "svc", *domain)
            yield (*name, namespace, "svc", *domain)
        case 3:  # web.prod.svc, or pod.web.prod
            if name[2] == "svc":
                yield (*name, *domain)
            yield (*name, "svc", *domain)
        case 4 if name[3] == "svc":  # pod.web.prod.svc
            yield (*name, *domain)
