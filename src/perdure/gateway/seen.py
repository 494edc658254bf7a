"""What a run has seen: every value that came into it, with its labels, from its journal and at the gateway."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.core import entries as e
from perdure.core import paths
from perdure.core.labels import PUBLIC, UNKNOWN, Label, Labels, join, join_all
from perdure.core.tools import ToolSpec
from perdure.core.values import Payload
from perdure.core.verdicts import ALLOW, Verdict, deny
from perdure.gateway.outputs import read_exchange, read_kept
from perdure.governance.flow import (
    DECLASSIFY,
    ENDORSE,
    Argument,
    FlowFacts,
    FlowRules,
    examine,
    facts_of,
    facts_of_label,
    is_named,
    judge,
    judge_release,
    output_labels,
    relabelled,
)
from perdure.governance.flow_context import PROGRAM, Context, What
from perdure.governance.flow_requests import answer_texts

if TYPE_CHECKING:
    from perdure.gateway.gates.case import Case
    from perdure.gateway.seat import Act, Outcome

log = logging.getLogger("perdure.flow")
BytesOf = Callable[[Payload], bytes]
RELABEL = (DECLASSIFY, ENDORSE)
OWN = Label(sources=("own",), integrity="trusted")
PERSON = Label(sources=("person",), integrity="trusted")  # an answer to a question


class Seen:
    """The values of one run.

    Args:
        rules: what is declared of the flow of information.
    """

    def __init__(self, rules: FlowRules) -> None:
        self.rules = rules
        self.context = Context()
        self._agent = ""
        self._named: dict[int, bool] = {}  # by open call of a tool: whether the user named what it reads
        self._carried: dict[int, Label] = {}  # by open call of a tool: what of its arguments is confidential
        self._judged: dict[int, Sequence[Argument]] = {}  # by call: the arguments as they were judged last
        self._case: Case | None = None  # whose they are

    # -- what came in
    def begin(
        self, run: str, agent: str, started: e.RunStarted, data: bytes, *, is_hosted: bool = False
    ) -> None:
        """The input of the run. A run that was started by another one brings the labels that its values had there."""
        program = PUBLIC
        if is_hosted:
            program = PROGRAM
            if self.rules.program_is_trusted:
                program = msgspec.structs.replace(PROGRAM, integrity="trusted")
        self.context = Context(run, program)
        self._agent = agent
        for value in self.rules.trusted:
            self.context.learn("declassified", -1, "own", value, (("", OWN),))
        labels = started.input.labels
        if not labels:
            rules = self.rules.agent(agent)
            unlabelled = UNKNOWN if started.parent is not None else rules.input
            labels = (("", unlabelled), *rules.inputs.items())
        self._learn("input", -1, "input", data, labels)

    def take(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        """An entry of the run's journal. Where it cannot be understood, nothing is known of any value from here on."""
        try:
            self._take(entry, bytes_of)
        except Exception:
            log.exception("entry %s of run %s cannot be labelled", entry.seq, self.context.run)
            self.context.give_up()

    def _take(self, entry: e.CallEntry, bytes_of: BytesOf) -> None:
        match entry:
            case e.ActionIntended(what="tool"):
                self._take_use(entry, bytes_of)
            case e.ActionEnded():
                self._take_end(entry, bytes_of)
            case e.StepCompleted():
                # What a step did is not known: it may have looked anywhere, and it had all that the run has.
                label = join(self.context.label, Label(sources=(f"step:{entry.name}",)))
                self._learn(
                    "answer", entry.call, f"step:{entry.name}", bytes_of(entry.result), (("", label),)
                )
            case e.MessageReceived(message=int()):
                told = (("", self.rules.agent(self._agent).messages),)
                self._learn("input", entry.call, "message", bytes_of(entry.body), entry.body.labels or told)
            case e.QuestionAnswered(message=int()):
                self._learn("input", entry.call, "person", bytes_of(entry.body), (("", PERSON),))
            case e.ChildStarted():
                self.context.learn_start(entry.call)
            case e.ChildEnded(result=Payload() as result):
                source = f"child:{entry.child}"
                self._learn("input", entry.call, source, bytes_of(result), result.labels or (("", UNKNOWN),))
            case e.StateRead(value=Payload() as value):
                self._learn("input", entry.call, "state", bytes_of(value), value.labels or (("", UNKNOWN),))
            case e.StepFailed() | e.ChildEnded():
                if entry.error is not None:
                    self._error(entry, entry.error)
            case _:
                pass

    def _take_use(self, entry: e.ActionIntended, bytes_of: BytesOf) -> None:
        found = self._judged.pop(entry.call, None)
        if found is None:  # on replay
            try:
                flow = self.rules.tool(entry.name)
                found = examine(self.context, flow, msgspec.json.decode(bytes_of(entry.request)))
            except paths.TooLargeError:
                self._carried[entry.call] = self.context.label
                self.context.learn_call(entry.call, None)
                return
        self._named[entry.call] = is_named(found)
        self._carried[entry.call] = join_all(
            item.origin.label for item in found if not item.origin.label.is_public
        )
        self.context.learn_call(entry.call, ((item.value, item.origin) for item in found))

    def _take_end(self, entry: e.ActionEnded, bytes_of: BytesOf) -> None:
        self._judged.pop(entry.call, None)
        context = self.context
        if entry.error is not None:
            self._error(entry, entry.error)
        if entry.result is None:
            return
        data, labels = bytes_of(entry.result), entry.result.labels
        if entry.upstream:
            labels = labels or (("", join(context.label, Label(sources=("model",), integrity="trusted"))),)
            for text in answer_texts(read_exchange(data).text):
                context.learn("answer", entry.call, "model", _parsed(text), labels)
            return
        kept = read_kept(data)
        labels = labels or self._output_labels(entry.name, entry.call, data, ())
        self._named.pop(entry.call, None)
        self._carried.pop(entry.call, None)
        if entry.name in RELABEL:
            context.learn("declassified", entry.call, entry.name, kept.value, labels)
            return
        source = f"tool:{entry.name}"
        context.learn("output", entry.call, source, _parsed(kept.value), labels)
        for block in kept.content:
            everything = join_all(label for _, label in labels)
            context.learn(
                "output", entry.call, source, _parsed(block.get("text", block)), (("", everything),)
            )

    def _error(self, entry: e.CallEntry, error: e.Failure) -> None:
        """What a failure says may be anybody's words; in another run, with what that one had seen."""
        own = (self.context.label, Label(sources=(f"{entry.kind}:{entry.name}",)))
        label = join_all((*own, *(label for _, label in error.labels)))
        self.context.learn("output", entry.call, f"{entry.kind}:{entry.name}", error.message, (("", label),))

    def _learn(self, what: What, call: int, source: str, data: bytes, labels: Labels) -> None:
        self.context.learn(what, call, source, msgspec.json.decode(data), labels)

    # -- what an action carries
    def facts(self, case: Case) -> FlowFacts:
        """What policies are told; where there is too much to tell, the worst."""
        if case.what == "model":
            return facts_of_label(self.context.request_label(_parsed(case.body.decode(errors="replace"))))
        try:
            return facts_of(self._examined(case))
        except paths.TooLargeError:
            return facts_of_label(UNKNOWN)

    def judge(self, case: Case) -> Verdict:
        """What the labels say of an action."""
        if case.what == "model":
            return ALLOW  # by its policies
        if case.name in RELABEL:
            return judge_release(case.name, self.rules.roles)
        try:
            return judge(self.context, self.rules.tool(case.name, case.spec), self._examined(case))
        except paths.TooLargeError:
            return deny(
                "flow-too-large", f"the arguments of `{case.name}` are too many or too deep to be judged"
            )

    def _examined(self, case: Case) -> Sequence[Argument]:
        if self._case is not case or case.call not in self._judged:
            schema = None if case.spec is None else case.spec.parameters
            flow = self.rules.tool(case.name, case.spec)
            self._judged[case.call] = examine(self.context, flow, case.arguments, schema)
            self._case = case
        return self._judged[case.call]

    # -- what goes on
    def labels_of(self, data: bytes, names: Collection[str] = ()) -> Labels:
        """The labels of a value that leaves the run for another one, whose parameters have these names."""
        return self.context.labels_of(msgspec.json.decode(data), names)

    def labels_of_outcome(self, act: Act, outcome: Outcome) -> Labels:
        """The labels of what an act has brought, for its entry; it has happened, so whatever fails here, it is recorded."""
        try:
            return self._labels_of_outcome(act, outcome)
        except Exception:
            log.exception("the outcome of action %s/%s cannot be labelled", self.context.run, act.call)
            return (("", UNKNOWN),)

    def _labels_of_outcome(self, act: Act, outcome: Outcome) -> Labels:
        if outcome.result is None:
            return ()
        if act.what == "model":
            body = _parsed(act.request.decode(errors="replace"))
            label = join(self.context.request_label(body), Label(sources=("model",), integrity="trusted"))
            return (("", label),)
        return self._output_labels(act.name, act.call, outcome.result, outcome.labels, act.spec)

    def _output_labels(
        self, name: str, call: int, data: bytes, given: Labels, spec: ToolSpec | None = None
    ) -> Labels:
        flow, kept = self.rules.tool(name, spec), read_kept(data)
        if name in RELABEL:
            return (("", relabelled(name, self.context.origin_of(kept.value).label)),)
        named = self._named.get(call, False)
        carried = self.context.label if flow.keeps else self._carried.get(call, PUBLIC)
        return output_labels(
            flow, _parsed(kept.value), run=self.context.run, call=call, tool=name, is_error=kept.is_error,
            named=named, carried=carried, given=given,
        )  # fmt: skip


def _parsed(value: Any) -> Any:
    """Data that came as JSON in a text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value
