"""Reads one e-mail file into plain text parts, and says what was damaged or repaired on the way.

It knows MIME and character sets, and nothing of invoices. It never raises on what a stranger sent: damage is reported
in the result.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import email.utils
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec

MAIL_BYTES_MAX = 10 * 1024 * 1024  # larger than what common mail servers accept
PARTS_MAX = 50  # a mail of more parts is a digest or an attack
LINE_CHARACTERS_MAX = 2_000  # nobody writes a label and its amount further apart
PART_CHARACTERS_MAX = 200_000  # an invoice is a few pages; keeps journal entries small
FALLBACK_CHARSETS = ("utf-8", "windows-1252")  # tried when the label is wrong, in this order
STRUCTURED = {"application/xml": "xml", "text/xml": "xml", "text/csv": "csv", "application/json": "json"}
DAMAGED_STRUCTURE = (
    email.errors.CloseBoundaryNotFoundDefect,
    email.errors.StartBoundaryNotFoundDefect,
    email.errors.MultipartInvariantViolationDefect,
    email.errors.NoBoundaryInMultipartDefect,
)
DAMAGED_ENCODING = (
    email.errors.InvalidBase64PaddingDefect,
    email.errors.InvalidBase64CharactersDefect,
    email.errors.InvalidBase64LengthDefect,
)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One readable part. ``form`` is ``text``, ``html``, ``xml``, ``csv`` or ``json``; html is already plain text."""

    name: str
    form: str
    text: str
    is_attached: bool = False


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A mail as plain text.

    Attributes:
        source: the file's name.
        damage: what could not be read; a person should look.
        repairs: what was wrong and could be made good.
        unread: attachments of a kind that is not read here, such as PDF.
    """

    source: str
    sender: str = ""
    address: str = ""
    subject: str = ""
    date: str = ""
    parts: tuple[Part, ...] = ()
    damage: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_file(path: Path) -> Mail:
    """The mail in a file; an unreadable file is a mail with damage."""
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            return Mail(source=path.name, damage=("this is not a regular file",))
        if size > MAIL_BYTES_MAX:
            reason = f"the file has {size} bytes, the limit is {MAIL_BYTES_MAX}"
            return Mail(source=path.name, damage=(reason,))
        return parse(path.name, path.read_bytes())
    except OSError as error:
        return Mail(source=path.name, damage=(f"the file cannot be read: {error.strerror}",))


def parse(source: str, data: bytes) -> Mail:
    """The mail in ``data``."""
    if not data.strip():
        return Mail(source=source, damage=("the file is empty",))
    try:
        return _parsed(source, data)
    except Exception as error:  # noqa: BLE001 - the standard parser raises many kinds on hostile headers: told in the result
        return Mail(source=source, damage=(f"this cannot be read as an e-mail ({type(error).__name__})",))


def _parsed(source: str, data: bytes) -> Mail:
    message = email.message_from_bytes(data)
    if not message.keys():
        return Mail(source=source, damage=("this is not an e-mail: it has no header",))
    reader = _Reader()
    for index, part in enumerate(message.walk()):
        if index >= PARTS_MAX:
            reader.damage.append(f"only the first {PARTS_MAX} parts were read")
            break
        try:
            reader.take(part)
        except Exception as error:  # noqa: BLE001 - as above; the other parts are still of use
            reader.damage.append(f"part {index} cannot be read ({type(error).__name__})")
    origin = _origin(message)
    name, address = email.utils.parseaddr(_header(origin, "From"))
    if not any(part.text.strip() for part in reader.parts):
        reader.damage.append("there is no text in it")
    return Mail(
        source=source,
        sender=name,
        address=address,
        subject=_header(origin, "Subject"),
        date=_date(origin),
        parts=tuple(reader.parts),
        damage=tuple(dict.fromkeys(reader.damage)),
        repairs=tuple(dict.fromkeys(reader.repairs)),
        unread=tuple(reader.unread),
    )


class _Reader:
    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.damage: list[str] = []
        self.repairs: list[str] = []
        self.unread: list[str] = []

    def take(self, part: email.message.Message) -> None:
        """Read one node of the MIME tree."""
        if any(isinstance(defect, DAMAGED_STRUCTURE) for defect in part.defects):
            self.damage.append("the mail is cut off or its parts are not closed")
        if part.is_multipart():
            return
        kind = part.get_content_type()
        name = _decoded(part.get_filename() or "")
        form = _form(kind, name)
        if form is None:
            self.unread.append(name or clean(kind))
            return
        payload = part.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else b""
        label = f"attachment `{name}`" if name else "the body"
        if any(isinstance(defect, DAMAGED_ENCODING) for defect in part.defects):
            self.damage.append(f"{label} is damaged: its base64 does not decode")
            if name:
                return
        text = self._text(part, data, label, form)[:PART_CHARACTERS_MAX]
        if form == "html":
            text = html_to_text(text)
        if form in ("text", "html", "csv"):
            text = "\n".join(line[:LINE_CHARACTERS_MAX] for line in text.splitlines())
        self.parts.append(Part(name=name or form, form=form, text=text, is_attached=bool(name)))

    def _text(self, part: email.message.Message, data: bytes, label: str, form: str) -> str:
        declared = part.get_param("charset")
        charset = clean(declared).strip().lower() if isinstance(declared, str) else "utf-8"
        try:
            return clean(data.decode(charset))
        except (ValueError, LookupError):  # of these, decoding errors and names that are none
            pass
        for fallback in FALLBACK_CHARSETS:
            try:
                text = data.decode(fallback)
            except UnicodeDecodeError:
                continue
            if form in ("text", "html", "csv"):
                self.repairs.append(f"{label} is not in `{charset}`; read as `{fallback}`")
            return text
        self.damage.append(f"{label} is in no known character set")
        return data.decode("ascii", "replace")


def _form(kind: str, name: str) -> str | None:
    suffix = name.rpartition(".")[2].lower()
    if kind in STRUCTURED:
        return STRUCTURED[kind]
    if suffix in ("xml", "csv", "json"):
        return suffix
    if kind == "text/html":
        return "html"
    return "text" if kind == "text/plain" else None


def _origin(message: email.message.Message) -> email.message.Message:
    """The innermost forwarded mail, or the mail itself: its sender is who sends the invoice."""
    found = message
    for part in list(message.walk())[:PARTS_MAX]:
        if part.get_content_type() == "message/rfc822" and part.is_multipart():
            inner = part.get_payload(0)
            if isinstance(inner, email.message.Message) and inner.get("From"):
                found = inner
    return found


def _header(message: email.message.Message, name: str) -> str:
    return " ".join(_decoded(str(message.get(name, ""))).split())


def _decoded(raw: str) -> str:
    """A header with its encoded words decoded; as it is, if they do not decode."""
    try:
        return clean(str(email.header.make_header(email.header.decode_header(raw))))
    except (LookupError, UnicodeError, ValueError, email.errors.HeaderParseError):
        return raw.encode("ascii", "replace").decode("ascii")


def clean(text: str) -> str:
    """The text without lone surrogates, which JSON cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _date(message: email.message.Message) -> str:
    try:
        return email.utils.parsedate_to_datetime(str(message.get("Date", ""))).date().isoformat()
    except (ValueError, TypeError, IndexError):
        return ""


class _TextOfHtml(HTMLParser):
    """Rows become lines and cells are parted by tabs, so that labels and amounts stay together."""

    BREAKS = frozenset({"br", "p", "div", "tr", "table", "li", "ul", "h1", "h2", "h3", "h4", "title", "hr"})
    HIDDEN = frozenset({"script", "style", "head"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the base class's
        """Open a tag."""
        if tag in self.HIDDEN:
            self._hidden += 1
        elif tag in self.BREAKS:
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append("\t")

    def handle_endtag(self, tag: str) -> None:
        """Close a tag."""
        if tag in self.HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in self.BREAKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep text that a reader would see."""
        if not self._hidden:
            self.pieces.append(" ".join(data.split("\n")))


def html_to_text(text: str) -> str:
    """What a reader sees of a page, one line a row."""
    parser = _TextOfHtml()
    parser.feed(text)
    parser.close()
    return "\n".join(_lines("".join(parser.pieces)))


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.split("\t")]
        joined = "\t".join(cell for cell in cells if cell)
        if joined:
            yield joined
