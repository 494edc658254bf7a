"""Who answers the questions of the desk: a person at the terminal, or the scripted reviewer shipped with the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from perdure.demo.review import Answer

SHIPPED_MAILS = Path(__file__).with_name("emails")
SCRIPT = Path(__file__).with_name("reviewer.json")
SCRIPTED = "scripted reviewer"
DECISIONS = {"a": "accept", "r": "reject", "h": "hold"}


class _Script(msgspec.Struct, frozen=True):
    reviewer: str
    answers: dict[str, Answer]


class ScriptedReviewer:
    """Answers as the shipped script says; what it does not know it holds, it never books a stranger's mail."""

    def __init__(self, folder: Path) -> None:
        is_shipped = folder.resolve() == SHIPPED_MAILS.resolve()
        script = msgspec.json.decode(SCRIPT.read_bytes(), type=_Script)
        self._answers = script.answers if is_shipped else {}
        self.name = SCRIPTED

    def answer(self, question: dict[str, Any]) -> Answer:
        """The answer to a question of the desk."""
        unknown = Answer("hold", note="the scripted reviewer does not know this mail; a person should look")
        return self._answers.get(str(question.get("file")), unknown)


class PersonReviewer:
    """Asks at the terminal; ``q`` hands the rest over to the scripted reviewer.

    Args:
        ask: shows a prompt and returns what was typed.
        say: shows a line.
    """

    def __init__(
        self, scripted: ScriptedReviewer, ask: Callable[[str], str], say: Callable[[str], None]
    ) -> None:
        self._scripted = scripted
        self._ask = ask
        self._say = say
        self._is_gone = False
        self.name = "you"

    def answer(self, question: dict[str, Any]) -> Answer:
        """Ask until something is understood."""
        if not self._is_gone:
            self._show(question)
        while not self._is_gone:
            choice = self._typed(
                "[a]ccept, [r]eject, [h]old, [q] let the scripted reviewer do the rest"
            ).lower()[:1]
            if choice == "q":
                self._is_gone = True
                self.name = SCRIPTED
            elif choice == "a":
                return self._corrected(question)
            elif choice in DECISIONS:
                return Answer("reject" if choice == "r" else "hold", note="decided at the terminal")
        return self._scripted.answer(question)

    def _corrected(self, question: dict[str, Any]) -> Answer:
        values = {}
        for field in ("number", "currency", "total"):
            known = str(question.get(field) or "")
            values[field] = self._typed(f"{field} [{known or 'missing'}]") or known
        return Answer("accept", note="accepted at the terminal", **values)

    def _typed(self, prompt: str) -> str:
        try:
            return self._ask(prompt).strip()
        except EOFError:  # nobody is there any more
            self._is_gone = True
            return "q"

    def _show(self, question: dict[str, Any]) -> None:
        self._say(f"\n{question.get('file')}: {question.get('supplier') or 'unknown supplier'}")
        for doubt in question.get("doubts", []):
            self._say(f"  ? {doubt}")


Reviewer = ScriptedReviewer | PersonReviewer
