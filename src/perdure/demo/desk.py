"""The invoice desk: an agent that reads mails, asks a person about the doubtful ones and writes a ledger.

It uses the public surface of Perdure only. It knows nothing of crashes: that a worker may die between any two lines
is the runtime's business.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from perdure import Run, agent, step
from perdure.demo import evidence
from perdure.demo.extract import Invoice, extract
from perdure.demo.ledger import as_csv, as_markdown, replace_file, totals_of
from perdure.demo.mail import Mail, read_file
from perdure.demo.review import Settled, compare, question_for, settle_all

T = TypeVar("T")

AGENT = "invoice-desk"
LANES = 4  # mails in work at once
MAILS_MAX = 5_000  # bounds the journal of one run
ANSWER_TIMEOUT_S = 7 * 86_400  # a person may be on leave; after that the invoice is held
LEDGER_FILE = "ledger"  # what the step log calls the file of the last step


class FolderError(Exception):
    """The folder of mails cannot be used; the text says what to do."""


class Place(msgspec.Struct, frozen=True):
    """Where steps note that they ran, and how long each one pauses on average so that a person can watch."""

    log: str
    pace_ms: int = 0


def mails_in(folder: Path) -> list[str]:
    """The names of the mail files of a folder, sorted.

    Raises:
        FolderError: there is no such folder, or no mail in it.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise FolderError(f"`{folder}` {problem}; give a folder with .eml files")
    try:
        names = sorted(
            item.name for item in folder.iterdir() if item.suffix.lower() == ".eml" and not item.is_dir()
        )
    except OSError as error:
        raise FolderError(
            f"`{folder}` cannot be read: {error.strerror}; check its owner and rights"
        ) from error
    if not names:
        raise FolderError(f"`{folder}` has no .eml file; save some mails there in that format")
    if len(names) > MAILS_MAX:
        raise FolderError(
            f"`{folder}` has {len(names)} mails, the demo takes {MAILS_MAX}; give a smaller folder"
        )
    for name in names:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise FolderError(f"{name!r} in `{folder}` is not named in UTF-8; rename the file")
    return names


@step(retries=2, timeout=30, give_up_on=(FolderError,))
def list_mails(folder: str, place: Place) -> list[str]:
    """The mails to work on; later arrivals are not part of this run."""
    names = mails_in(Path(folder))
    return _noted("list_mails", "-", names, place)


@step(retries=2, timeout=30)
def read_mail(path: str, place: Place) -> Mail:
    """One mail as plain text."""
    return _noted("read_mail", Path(path).name, read_file(Path(path)), place)


@step(retries=2, timeout=30)
def extract_mail(mail: Mail, place: Place) -> Invoice:
    """The typed record in one mail."""
    return _noted("extract_mail", mail.source, extract(mail), place)


@step(retries=2, timeout=30)
def write_ledger(settled: list[Settled], ledger: str, place: Place) -> dict[str, Any]:
    """Replace the ledger files; writing them twice gives the same files."""
    replace_file(Path(ledger), as_csv(settled))
    replace_file(Path(ledger).with_suffix(".md"), as_markdown(settled))
    verdicts = [item.verdict for item in settled]
    counts = {verdict: verdicts.count(verdict) for verdict in ("booked", "rejected", "held", "other")}
    summary = {**counts, "totals": totals_of(settled), "ledger": ledger}
    return _noted("write_ledger", LEDGER_FILE, summary, place)


@agent(AGENT)
async def invoice_desk(run: Run, folder: str, ledger: str, pace_ms: int = 0) -> dict[str, Any]:
    """Read the mails in ``folder`` and write ``ledger`` (CSV, and Markdown beside it)."""
    place = Place(str(Path(ledger).with_name(evidence.LOG_NAME)), pace_ms)
    files: list[str] = await run.step(list_mails, folder, place)
    paths = [str(Path(folder, name)) for name in files]
    lanes = await run.gather(*(_invoices_in(run, paths[lane::LANES], place) for lane in range(LANES)))
    invoices = sorted((item for lane in lanes for item in lane), key=lambda item: item.source)
    distinct, duplicates = compare(invoices)
    certain = [invoice for invoice in distinct if not invoice.doubts]
    doubtful = [invoice for invoice in distinct if invoice.doubts]
    answers = await run.gather(*(run.ask(question_for(item), timeout=ANSWER_TIMEOUT_S) for item in doubtful))
    settled = settle_all(certain, doubtful, answers, duplicates)
    summary: dict[str, Any] = await run.step(write_ledger, settled, ledger, place)
    return {**summary, "mails": len(files), "asked": len(doubtful)}


async def _invoices_in(run: Run, paths: list[str], place: Place) -> list[Invoice]:
    """One mail after the other."""
    invoices: list[Invoice] = []
    for path in paths:
        mail: Mail = await run.step(read_mail, path, place)
        invoices.append(await run.step(extract_mail, mail, place))
    return invoices


def steps_expected(mails: int) -> int:
    """How many steps a run over so many mails takes."""
    return 2 * mails + 2


def _noted(name: str, file: str, result: T, place: Place) -> T:
    """Note the execution in the step's own log and give the result back.

    The pause is before and after the note: so a kill may well hit a step that ran and was not recorded yet, which is
    the case that the table at the end must not hide.
    """
    share = (
        0.5 + zlib.crc32(f"{name} {file}".encode("utf-8", "replace")) % 1000 / 1000
    )  # so that steps do not march in line
    time.sleep(place.pace_ms * share / 2000)
    evidence.append(Path(place.log), name, file, result)
    time.sleep(place.pace_ms * share / 2000)
    return result
