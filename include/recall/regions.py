"""Recall's regions: wholly separate deployments, of which none knows another's keys, bots or recordings."""

from __future__ import annotations

REGIONS = ("us-west-2", "us-east-1", "eu-central-1", "ap-northeast-1")


def base_url_of(region: str) -> str:
    """Return the address of a region's API."""
    return f"https://{region}.recall.ai"
