"""Audit records in the forms that other systems read: OCSF events and DSSE envelopes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from perdure.core.audit import AuditRow

OCSF_VERSION = "1.3.0"
API_ACTIVITY = 6003  # class "API Activity" of category 6, "Application Activity"
ACTIVITY_OTHER = 99
STATUS = {
    "succeeded": (1, "Success"),
    "failed": (2, "Failure"),
    "refused": (2, "Failure"),
    "lost": (2, "Failure"),
}
SEVERITY_INFORMATIONAL, SEVERITY_MEDIUM = 1, 3
DSSE_TYPE = "application/vnd.perdure.audit+json"


def ocsf(row: AuditRow, product_version: str) -> str:
    """A record as an OCSF event of class API Activity: https://schema.ocsf.io/1.3.0/classes/api_activity."""
    data = row.data
    status_id, status = STATUS.get(data.get("state", ""), (0, "Unknown"))
    event: dict[str, Any] = {
        "activity_id": ACTIVITY_OTHER,
        "activity_name": data["kind"],
        "actor": {"app_name": data.get("agent", ""), "user": {"name": data.get("by", "")}},
        "api": {"operation": data.get("name", ""), "service": {"name": data.get("what", "")}},
        "category_uid": API_ACTIVITY // 1000,
        "class_uid": API_ACTIVITY,
        "metadata": {
            "product": {"name": "Perdure", "vendor_name": "Perdure", "version": product_version},
            "uid": str(row.index),
            "version": OCSF_VERSION,
        },
        "severity_id": SEVERITY_MEDIUM
        if data["kind"] in ("refused", "doubted", "containment")
        else SEVERITY_INFORMATIONAL,
        "src_endpoint": {"name": data.get("run", "")},
        "status_id": status_id,
        "status": status,
        "status_detail": ", ".join(data.get("codes", ())),
        "time": data["at_ms"],
        "type_uid": API_ACTIVITY * 100 + ACTIVITY_OTHER,
        "unmapped": {**data, "place": row.index},
    }
    return json.dumps(event, sort_keys=True)


def dsse(row: AuditRow, sign: Callable[[bytes], bytes], key: str) -> str:
    """A record in a signed envelope: DSSE 1.0, https://github.com/secure-systems-lab/dsse."""
    payload = row.leaf
    kind = DSSE_TYPE.encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": DSSE_TYPE,
        "signatures": [{"keyid": key, "sig": base64.b64encode(sign(signed)).decode()}],
    }
    return json.dumps(envelope, sort_keys=True)
