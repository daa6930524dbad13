"""What the OpenAPI document says of parameters and fields whose meaning is the same wherever they are."""

from __future__ import annotations

PARAMETERS = {
    "ref": "The object's id or name.",
    "id": "The object's id.",
    "name": "The object's name.",
    "address": "An IP address.",
    "mac": "The MAC address of the interface.",
    "site": "The site's name.",
    "one": "The name of one of the two sites.",
    "other": "The name of the other site.",
    "pid": "The process id, from the start of the program.",
    "newer_than": "Wait until the object has a later revision than this.",
    "timeout_s": "With `newer_than`: the most seconds to wait; after that, the response has the object as it is.",
    "limit": "The most items to return.",
    "cursor": "`next` of the previous page.",
    "node": "Only items of this node.",
    "user": "Only items of this user.",
    "vm": "Only items of this VM, by id or name.",
    "image": "Only VMs created from this image.",
    "object": "Only items about this object, by id or name.",
    "phase": "Only items in this phase.",
    "state": "Only items in this state.",
    "since": "Only items from this time on (RFC 3339).",
    "until": "Only items before this time (RFC 3339).",
    "actor": "Only actions of this user.",
    "action": "Only this action.",
    "outcome": "Only items with this outcome.",
    "route": "Only calls of this route.",
    "errors": "Only calls that failed.",
    "force": "Set if its node, or host, is gone for good.",
    "policy": "Only backups requested by this backup policy, by id or name.",
    "repository": "Only backups in this backup repository, by id or name.",
    "code": "From the identity provider.",
    "after": "Only items after this one.",
}
"""By name; a route's own words go first."""
FIELDS = {
    "id": "Never changes, and is never used again.",
    "name": "Its name.",
    "revision": "Increases with every change of the object; also its ETag.",
    "created_at": "When it was created.",
    "finished_at": "When it ended; null: it has not ended yet.",
    "project": "The project that the object belongs to.",
    "reason_code": "Reason code, for programs, of what prevents the requested state; empty: nothing does.",
    "error": "Why it failed, for people; empty or null: it did not fail.",
    "phase": "The current phase.",
    "vm": "The VM's id.",
    "vm_name": "The VM's name.",
    "node": "The node's name.",
    "spec": "The desired state, as users set it.",
    "items": "The items, in order.",
    "next": "The cursor of the next page; null: this is the last page.",
    "trace": "The trace of the request that started it (W3C Trace Context).",
}
"""What fields mean that mean the same in (nearly) all objects, by name; the docstrings of a struct's own fields go
first."""
FIELDS_OF_LISTS = {"revision": "The revision of the state that this list is from, for `min_revision` and `/watch`."}
"""The same for lists."""
_OBSERVED = "The observed state, as last reported."
_HTTP_STATUS = "The HTTP status code of the response."
_CONCERNED = {
    "name": "The name of the object concerned; null: it has none.",
    "project": "The project concerned, if any.",
}
_BY_NAME = "The VM, by id or name."
_FIELDS_OF_VMS = "Fields of the VMs that are created with it."
FIELDS_OF = {
    "ApiCall": {"status": _HTTP_STATUS},
    "AttachFloatingAddress": {"vm": _BY_NAME},
    "AttachVolume": {"vm": _BY_NAME},
    "AuditRecord": {"status": _HTTP_STATUS, **_CONCERNED},
    "BeginSecondFactor": {"name": "A name for the factor, to tell it from the user's others."},
    "BegunFactor": {"name": "The factor's name."},
    "ChainedRecord": {"status": _HTTP_STATUS, **_CONCERNED},
    "ConfigureFlavor": {"spec": _FIELDS_OF_VMS},
    "ConfigureOne": {"vm": _BY_NAME},
    "ConfigureTemplate": {"spec": _FIELDS_OF_VMS},
    "CreateFlavor": {"spec": _FIELDS_OF_VMS},
    "CreateForward": {"vm": _BY_NAME},
    "CreateGrant": {"project": "Where the role applies; null: everywhere."},
    "CreateTemplate": {"spec": _FIELDS_OF_VMS, "vm": "Instead of `spec`: the VM to take fields from, by id or name."},
    "CreateToken": {"project": "The only project in which the token works; null: all of its user's."},
    "CreateUser": {"project": "The project of a service account; null: none."},
    "ErasedKey": {"project": "The project whose key was erased."},
    "Event": {"name": "The name of the object concerned."},
    "Flavor": {"spec": _FIELDS_OF_VMS},
    "Grant": {"project": "Where the role applies; null: everywhere."},
    "Import": {"spec": "What was requested."},
    "ImportSpec": {"name": "The name of the image."},
    "Invitation": {"project": "The project in which the role is offered."},
    "Join": {"name": "The node's name, as in its join token."},
    "Me": {"project": "The project of the caller's requests that name none."},
    "MoveImage": {"project": "The new owner of the image; null: all projects may use it."},
    "Node": {"status": _OBSERVED},
    "NodeCondition": {"status": "Whether the condition is true, as last observed."},
    "PlanVm": {"vm": "The VM, by id; requests may also give its name."},
    "Problem": {"status": _HTTP_STATUS},
    "RenameNode": {"name": "The node's new name."},
    "Result": {"status": "The HTTP status code that the item alone would get.", "vm": "The VM; null: see `problem`."},
    "Template": {"spec": _FIELDS_OF_VMS},
    "UnreachablePeer": {"name": "The node's name."},
    "Vm": {"status": _OBSERVED},
    "WatchMessage": {"revision": "The revision up to which the stream is complete with this message; null: unknown."},
}  # fmt: skip
"""By schema: what there means something else than elsewhere."""
