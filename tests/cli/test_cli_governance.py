"""``approvals``, ``keys``, ``contain``, ``kill``, ``audit``, ``policy`` and ``runs undo``, as a person and a program use them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.governance import verify_file
from tests.cli.conftest import Cli
from tests.governance.authenticator import PARTY, Authenticator
from tests.runtime.witness_process import WitnessProcess

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"


@pytest.fixture
def shop(cli: Cli) -> Cli:
    """The example shop with its policies, and a key for finance."""
    for name in ("shop.py", "shop.cedar", "tests.yaml"):
        target = cli.folder / ("shop.py" if name == "shop.py" else f"rules/{name}")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / name, target)
    text = (cli.folder / "rules/shop.cedar").read_text()
    # The tests run at any hour, and without a user behind the agent.
    text = (
        text[: text.index("// Nothing that changes the world at night")] + text[text.index('@id("models")') :]
    )
    (cli.folder / "rules/shop.cedar").write_text(text)
    (cli.folder / "perdure.toml").write_text('[governance]\npolicies = "rules"\n')
    cli.ok("keys", "new", "--person", "anna", "--role", "finance", PERDURE_KEY=key(cli))
    return cli


def lines(cli: Cli, *arguments: str) -> list[Any]:
    """The objects that a command prints."""
    return [json.loads(line) for line in cli.ok(*arguments, "--json").splitlines()]


def key(cli: Cli, name: str = "anna") -> str:
    return str(cli.folder / f"{name}.jwk")


def order(cents: int) -> str:
    return json.dumps({"order": "A1", "cents": cents})


def started(cli: Cli, cents: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "run", "shop.py", order(cents), "--json"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=cli.environment(), cwd=cli.folder,
    )  # fmt: skip
    cli.processes.append(process)
    return process


def pending(cli: Cli) -> Any:
    until = time.monotonic() + 15
    while time.monotonic() < until:
        if found := lines(cli, "approvals", "list"):
            return found[0]
        time.sleep(0.1)
    raise AssertionError("nothing waits")


def ended(process: subprocess.Popen[str]) -> tuple[int, Any]:
    out, _ = process.communicate(timeout=20)
    return process.returncode, json.loads(out.splitlines()[-1])


def test_small_goes_through_large_is_asked_for_and_too_large_is_denied(shop: Cli) -> None:
    assert (
        json.loads(shop.ok("run", "shop.py", order(900), "--json").splitlines()[-1])["result"]
        == "refunded 900 for A1"
    )
    denied = shop("run", "shop.py", order(2_000_000), "--json")
    assert denied.returncode == 3
    assert "no policy allows it to agent `shop`" in denied.stdout + denied.stderr
    process = started(shop, 90_000)
    found = pending(shop)
    action = found["action"]
    shown = shop.ok("approvals", "show", action)
    assert "cents = 90000" in shown
    assert "refunds over 50 euros are looked at by finance" in shown
    assert "1 x finance" in shop.ok("approvals", "list")
    nobody = shop("approvals", "approve", action, PERDURE_KEY=key(shop, "nobody"))
    assert (nobody.returncode, "perdure keys new" in nobody.stderr) == (2, True)
    approved = json.loads(
        shop.ok("approvals", "approve", action, "--reason", "fine", "--json", PERDURE_KEY=key(shop))
    )
    assert (approved["state"], approved["persons"]) == ("released", ["anna"])
    assert ended(process) == (0, {"run": action.partition("/")[0], "result": "refunded 90000 for A1"})
    told = lines(shop, "audit", "show", action)
    assert [item["kind"] for item in told] == ["held", "granted", "settled", "intended", "ended"]
    assert lines(shop, "approvals", "list") == []


def test_a_rejection_and_other_arguments(shop: Cli) -> None:
    process = started(shop, 90_000)
    action = pending(shop)["action"]
    shop.ok("approvals", "reject", action, "--reason", "no parcel came", PERDURE_KEY=key(shop))
    code, told = ended(process)
    assert (code, "no parcel came" in json.dumps(told)) == (3, True)
    process = started(shop, 90_000)
    action = pending(shop)["action"]
    wrong = shop("approvals", "approve", action, "--arguments", "[1]", PERDURE_KEY=key(shop))
    assert wrong.returncode == 2
    shop.ok(
        "approvals", "approve", action, "--arguments", '{"order": "A1", "cents": 6000}', PERDURE_KEY=key(shop)
    )
    assert ended(process)[1]["result"] == "refunded 6000 for A1"


def test_a_passkey_by_files(shop: Cli) -> None:
    """The page is played by the test: files in, files out."""
    pytest.importorskip("webauthn")
    device = Authenticator("es256", "carol")

    def page(name: str, text: str) -> str:
        (shop.folder / name).write_text(text)
        return name

    invited = json.loads(
        shop.ok("keys", "invite", "--person", "carol", "--role", "finance", "--rp-id", PARTY.id)
    )
    made = page("made.json", device.create(invited["publicKey"]))
    [row] = lines(shop, "keys", "passkey", "--from-file", made)
    assert (row["person"], row["kind"]) == ("carol", "passkey")
    assert shop("keys", "passkey", "--from-file", made).returncode == 2, "an invitation counts once"
    assert "passkey" in shop.ok("keys", "list")
    process = started(shop, 90_000)
    action = pending(shop)["action"]
    text = shop.ok("approvals", "ask", action, "--reason", "fine")
    asked, options = page("asked.json", text), json.loads(text)["publicKey"]
    assert "cents = 90000" in json.loads(text)["shown"]
    forged = page("forged.json", device.answer(options, origin="https://evil.example"))
    refused = shop("approvals", "submit", action, "--from-file", forged, "--asked", asked)
    assert (refused.returncode, "grant-signature-invalid" in refused.stderr) == (3, True)
    signed = page("signed.json", device.answer(options))
    assert shop("approvals", "submit", action, "--from-file", signed).returncode == 3, (
        "what was asked is missing"
    )
    assert shop("approvals", "submit", action, "--from-file", signed, "--asked", signed).returncode == 2
    [told] = lines(shop, "approvals", "submit", action, "--from-file", signed, "--asked", asked)
    assert (told["state"], told["persons"]) == ("released", ["carol"])
    assert ended(process)[1]["result"] == "refunded 90000 for A1"
    assert shop("keys", "invite", "--rp-id", PARTY.id, "--origin", "https://evil.example").returncode == 2
    wrong = shop("approvals", "ask", action, "--decision", "reject", "--arguments", "{}")
    assert wrong.returncode == 2


def test_keys(shop: Cli) -> None:
    [anna] = lines(shop, "keys", "list")
    assert Path(key(shop)).stat().st_mode & 0o077 == 0
    assert "d" not in json.loads(anna["jwk"])
    public = {**json.loads(anna["jwk"]), "person": "bob", "roles": ["head"]}
    (shop.folder / "team.json").write_text(json.dumps({"keys": [public]}))
    [bob] = lines(shop, "keys", "import", "team.json")
    assert bob["person"] == "bob"
    assert shop("keys", "import", key(shop)).returncode == 2, "a private key is no set of public ones"
    [revoked] = lines(shop, "keys", "revoke", anna["kid"][:8], "--reason", "lost")
    assert revoked["revoked_ms"]
    assert "REVOKED" in shop.ok("keys", "list")
    assert shop("keys", "revoke", "zzz").returncode == 2
    Path(key(shop)).chmod(0o644)
    again = shop("keys", "new", PERDURE_KEY=key(shop))
    assert (again.returncode, "others can read" in again.stderr) == (2, True)


def test_containment_and_the_kill_switch(shop: Cli) -> None:
    shop.ok("contain", "set", "agent:shop", "restrict", "--reason", "odd")
    assert [item["scope"] for item in lines(shop, "contain", "list")] == ["agent:shop"]
    stopped = shop("run", "shop.py", order(900))
    assert (stopped.returncode, "contained-restrict" in stopped.stderr) == (3, True)
    assert "is free" in shop.ok("contain", "lift", "agent:shop")
    assert "was not contained" in shop.ok("contain", "lift", "agent:shop")
    assert shop("contain", "set", "shop", "stop").returncode == 2
    process = started(shop, 90_000)
    action = pending(shop)["action"]
    [report] = lines(shop, "kill", "agent:shop", "--reason", "enough")
    assert report["runs"] == [action.partition("/")[0]]
    assert report["refused_ms"] <= report["ended_ms"]
    assert ended(process)[0] != 0
    assert (
        "is stopped" in shop("run", "shop.py", order(1)).stderr
        or "contained-stop" in shop("run", "shop.py", order(1)).stderr
    )


def test_undo(shop: Cli) -> None:
    run = json.loads(shop.ok("run", "shop.py", order(900), "--json").splitlines()[-1])["run"]
    plan = lines(shop, "runs", "undo", run, "shop.py", "--dry-run")[0]["plan"]
    assert [(step["name"], step["how"]) for step in plan] == [("refund", "impossible"), ("set_stock", "undo")]
    assert "says no way to undo it" in shop.ok("runs", "undo", run, "shop.py", "--dry-run")
    assert shop("runs", "undo", "none", "shop.py").returncode == 2


def test_the_audit_log(shop: Cli) -> None:
    shop.ok("run", "shop.py", order(900))
    found = lines(shop, "audit", "verify")[0]
    assert (found["whole"], found["problems"], found["signed"]) == (True, [], found["size"])
    assert "nothing found" in shop.ok("audit", "verify")
    verifier = shop.ok("audit", "key").strip()
    (shop.folder / "key.txt").write_text(verifier)
    (shop.folder / "note.txt").write_text(shop.ok("audit", "checkpoint"))
    shop.ok("audit", "export", "--output", "log.jsonl")
    script = [sys.executable, "-I", "-S", verify_file.__file__, "log.jsonl", "note.txt", "key.txt"]
    done = subprocess.run(script, cwd=shop.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [rotated] = lines(shop, "audit", "rotate-key", "--reason", "it is March")
    assert rotated["key"] == shop.ok("audit", "key", "--current").strip() != verifier
    assert shop.ok("audit", "key").strip() == verifier
    assert lines(shop, "audit", "verify", "--key", verifier)[0]["problems"] == []
    action = lines(shop, "actions", "list")[0]["action"]
    (shop.folder / "proof.json").write_text(shop.ok("audit", "prove", action))
    script = [sys.executable, "-I", "-S", verify_file.__file__, "--proof", "proof.json", "key.txt"]
    assert subprocess.run(script, cwd=shop.folder, capture_output=True, check=False).returncode == 0
    assert shop("audit", "prove", "none/1").returncode == 2
    with closing(sqlite3.connect(shop.data / "perdure.db", isolation_level=None)) as connection:
        connection.execute(
            "UPDATE audit_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), 'refund', 'reword') AS BLOB)"
        )
    bad = shop("audit", "verify", "--key", verifier, "--checkpoint", "note.txt")
    assert (bad.returncode, "FOUND:" in bad.stdout) == (1, True)
    assert shop("audit", "verify", "--key", "nonsense").returncode == 2


def test_a_witness(shop: Cli) -> None:
    verifier = shop.ok("audit", "key").strip()
    witness = WitnessProcess(shop.folder / "w1").start(verifier)
    try:
        config = (shop.folder / "perdure.toml").read_text()
        table = (
            f'[[governance.witness]]\nname = "{witness.name}"\nurl = "{witness.url}"\nkey = "{witness.key}"\n'
        )
        (shop.folder / "perdure.toml").write_text(config + table)
        shop.ok("run", "shop.py", order(900))
        (shop.folder / "w1.key").write_text(witness.key)
        [found] = lines(shop, "audit", "verify", "--witness", "w1.key", "--ask", witness.url)
        assert (found["problems"], found["cosigned"]) == ([], found["size"])
        assert "has cosigned" in shop.ok("audit", "verify", "--witness", witness.key, "--quorum", "1")
        assert shop("audit", "verify", "--witness", witness.key, "--quorum", "2").returncode == 2
        assert shop("audit", "verify", "--witness", verifier).returncode == 2
        [status] = lines(shop, "audit", "status")
        assert [item["state"] for item in status["witnesses"]] == ["cosigned"]
        assert witness.name in shop.ok("audit", "status")
    finally:
        witness.kill()
    away = shop("audit", "verify", "--ask", witness.url)
    assert (away.returncode, "did not answer" in away.stderr) == (4, True)
    assert (
        shop("audit", "witness", "--name", "w", "--key", "k", "--state", "s", "--log", "w1.key").returncode
        == 2
    )
    assert (
        shop(
            "audit", "witness", "--name", "w", "--key", "k", "--state", "s", "--log", "x", "--listen", "y"
        ).returncode
        == 2
    )


def test_policies(shop: Cli) -> None:
    checked = shop("policy", "check", str(EXAMPLES), "shop.py")
    assert (checked.returncode, "9 policies fit 3 tools" in checked.stdout) == (0, True), checked.stdout
    wide = shop.folder / "wide"
    wide.mkdir()
    (wide / "a.cedar").write_text("permit (principal, action, resource);")
    broad = shop("policy", "check", "wide", "shop.py")
    assert (broad.returncode, "too-broad" in broad.stdout) == (1, True)
    assert "6 of 6 as expected" in shop.ok("policy", "test", str(EXAMPLES), "shop.py")
    failing = shop.folder / "table.yaml"
    failing.write_text(
        "- {name: a, agent: b, tool: refund, arguments: {order: x, cents: 1}, expect: allow}\n"
    )
    assert shop("policy", "test", str(EXAMPLES), "shop.py", "--cases", str(failing)).returncode == 1
    shop.ok("run", "shop.py", order(900))
    action = next(item["action"] for item in lines(shop, "actions", "list") if item["name"] == "refund")
    [link] = lines(shop, "policy", "explain", "rules", "shop.py", action)
    assert (link["allowed"], link["policies"], link["near"]) == (
        True,
        ["small-refunds"],
        ["huge-refunds", "large-refunds"],
    )
    strict = shop.folder / "strict"
    strict.mkdir()
    (strict / "a.cedar").write_text(
        '@id("stock") permit (principal, action == Action::"set_stock", resource);'
    )
    changed = lines(shop, "policy", "backtest", "strict", "shop.py")
    assert [(item["name"], item["before"], item["after"]) for item in changed] == [
        ("refund", "allow", "deny")
    ]
    assert "1 of 2 verdicts would change" in shop.ok(
        "policy", "backtest", "strict", "shop.py", "--since", "1h"
    )
    (strict / "a.cedar").write_text("permit (")
    assert shop("policy", "check", "strict", "shop.py").returncode == 2
    assert shop("policy", "backtest", "strict", "shop.py", "--since", "soon").returncode == 2


def test_a_run_on_somebodys_behalf(shop: Cli) -> None:
    text = (EXAMPLES / "shop.cedar").read_text()
    start, end = text.index("// Nothing that changes the world at night"), text.index('@id("models")')
    (shop.folder / "rules/shop.cedar").write_text(text[:start] + text[end:])
    fine = shop("run", "shop.py", order(900), "--user", "ute", "--group", "service")
    assert fine.returncode == 0, fine.stderr
    denied = shop("run", "shop.py", order(900), "--user", "otto")
    assert (denied.returncode, "no policy allows it to user `otto`" in denied.stderr) == (3, True)
    assert shop("run", "shop.py", order(900), "--group", "service").returncode == 2
