"""Which VMs use an image."""

from __future__ import annotations


def uses(image: str) -> str:
    """Return the condition of VMs that are made of an image, boot it, or have it in a drive. ``image`` is SQL."""
    return (
        f"(vms.spec ->> 'image' = {image} OR {image} IN (vms.spec ->> 'kernel', vms.spec ->> 'initrd')"
        f" OR vms.spec -> 'cdroms' @> jsonb_build_array(jsonb_build_object('iso', {image}::text)))"
    )
