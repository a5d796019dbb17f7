"""Recall's regions: wholly separate deployments, of which none knows another's keys, bots or recordings."""

from __future__ import annotations

from include.recall.errors import RecallConfigError

REGIONS = ("us-west-2", "us-east-1", "eu-central-1", "ap-northeast-1")


def base_url_of(region: str) -> str:
    """Return the address of a region's API, for example ``https://us-west-2.recall.ai``.

    :raises RecallConfigError: Recall has no such region.
    """
    if region not in REGIONS:
        raise RecallConfigError(f"unknown Recall region {region[:64]!r}; known are {', '.join(REGIONS)}")
    return f"https://{region}.recall.ai"
