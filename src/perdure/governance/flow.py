"""Flow: untrusted data does not choose who gets something, and what is confidential does not leave.

What an action's arguments carry is worked out value by value (``flow_context``), held against what its tool declares
(``core.flows``), and told to the policies as labels.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.core import paths
from perdure.core.errors import DefinitionError
from perdure.core.flows import TRUSTED_KINDS, Sink, ToolFlow, check_paths
from perdure.core.labels import EVERYONE, PUBLIC, UNKNOWN, UNTRUSTED, USER, Label, Labels, join, join_all
from perdure.core.tools import ToolSpec
from perdure.core.verdicts import ALLOW, Demand, Reason, Verdict, both, deny, hold
from perdure.governance.flow_context import Context, Origin, shown

DECLASSIFY, ENDORSE = "perdure.declassify", "perdure.endorse"
NAMED = "named"  # a source of what was read from a place that the user named
SAID = ("input", "person")  # what somebody has said to the run himself
NAME_LENGTH_MIN = 4  # characters from which a value that the user gave names a place
VALUE_SHOWN_MAX = 80


class AgentFlow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes into the runs of an agent from outside.

    Attributes:
        input: the label of its input; by default whoever starts a run is trusted.
        inputs: labels of parts of it, by path.
        messages: the label of messages that other programs send; by default untrusted. Those of other runs bring their own.
    """

    input: Label = USER
    inputs: Mapping[str, Label] = msgspec.field(default_factory=dict)
    messages: Label = UNTRUSTED

    def __post_init__(self) -> None:
        check_paths("inputs", self.inputs)


class FlowRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is declared of the flow of information, in a file.

    Attributes:
        trusted: values of one's own, such as the address of the treasury, that programs and models may use anywhere.
        program_is_trusted: whether what hosted programs say that is nowhere in the run, such as a system
            prompt, is trusted.
        roles: who may declassify and endorse values.
        tools: by name, for tools that do not declare it in their code; what is here counts.
        agents: by name, what comes into their runs.
        declared: by name, what tools declare in their code; in no file.
    """

    trusted: tuple[str, ...] = ()
    program_is_trusted: bool = False
    roles: tuple[str, ...] = ("approver",)
    tools: Mapping[str, ToolFlow] = msgspec.field(default_factory=dict)
    agents: Mapping[str, AgentFlow] = msgspec.field(default_factory=dict)
    declared: Mapping[str, ToolFlow] = msgspec.field(default_factory=dict)

    def tool(self, name: str, spec: ToolSpec | None = None) -> ToolFlow:
        """What is declared for a tool; of one that declares nothing, the output is untrusted and the arguments are seen by anyone.

        Args:
            name: as agents call it.
            spec: the tool itself, where it is known: what another one of its name declares in its code is not its own.
        """
        found = self.tools.get(name)
        if found is None:
            found = self.declared.get(name) if spec is None else spec.flow
        return UNDECLARED if found is None else found

    def agent(self, name: str) -> AgentFlow:
        """What comes into the runs of an agent."""
        return self.agents.get(name, AgentFlow())


UNDECLARED = ToolFlow()


def read_rules(text: str) -> FlowRules:
    """The declarations of a TOML file.

    Raises:
        DefinitionError: it cannot be read.
    """
    try:
        rules = msgspec.convert(tomllib.loads(text), FlowRules)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise DefinitionError(f"the flow rules cannot be read: {error}") from error
    if rules.declared:
        raise DefinitionError("the flow rules cannot be read: `declared` is for code; write `tools`")
    return rules


def complete(rules: FlowRules, declared: Mapping[str, ToolFlow | None], agents: Collection[str]) -> FlowRules:
    """The same with what the tools declare in their code.

    Args:
        rules: those of the file.
        declared: every tool that an agent may have, with what it declares.
        agents: every agent.

    Raises:
        DefinitionError: a tool or agent is named that is not there: a misspelt name would protect nothing.
    """
    for what, named, known in (("tool", rules.tools, declared), ("agent", rules.agents, agents)):
        if unknown := sorted(set(named) - set(known)):
            offered = ", ".join(f"`{name}`" for name in sorted(known)) or "none"
            message = (
                f"the flow rules name {what} `{unknown[0]:.80}`, which is not there; there are {offered}"
            )
            raise DefinitionError(message)
    code = {name: flow for name, flow in declared.items() if flow is not None}
    return msgspec.structs.replace(rules, declared=code)


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What the arguments of an action carry, for policies.

    Attributes:
        labels: ``untrusted``, ``confidential``, ``secret``, ``made``; the first three also with the kind of sink before which they
            stand, such as ``untrusted.recipient``.
        sources: where they come from; where a sink usually takes only trusted values also with its kind in front, such as
            ``recipient.tool:mail.read``.
    """

    labels: frozenset[str]
    sources: frozenset[str]


@dataclass(frozen=True, slots=True)
class Argument:
    """One scalar among the arguments: where it stands, what it decides, where it comes from."""

    path: paths.Path
    value: Any
    sink: Sink | None
    origin: Origin

    @property
    def kind(self) -> str:
        """The kind of its sink."""
        return "" if self.sink is None else self.sink.kind


def examine(
    context: Context, flow: ToolFlow, arguments: Mapping[str, Any], schema: Mapping[str, Any] | None = None
) -> tuple[Argument, ...]:
    """The scalars of the arguments with their origins, and names of arguments that the tool does not know.

    Args:
        context: what the run has seen.
        flow: what the tool declares.
        arguments: of the action.
        schema: of the tool's parameters: what it does not name, the caller has chosen. ``None`` if that does not matter.

    Raises:
        paths.TooLargeError: there are too many to be judged.
    """
    found: list[Argument] = []
    for path, value in paths.leaves(arguments, names=_names_in(schema, arguments)):
        sink = flow.sink_at(path)
        origin = context.origin_of(value, is_amount=sink is not None and sink.kind == "amount")
        found.append(Argument(path, value, sink, origin))
    return tuple(found)


def _names_in(schema: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> Collection[str] | None:
    """The names that a schema knows; anywhere in it, since it may be put together of parts. ``None`` if that is all that are used."""
    if schema is None or arguments.keys() <= schema.get("properties", {}).keys():
        return None
    found: set[str] = set()
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            properties = node.get("properties")
            found.update(properties if isinstance(properties, Mapping) else ())
        if isinstance(node, Mapping | list):
            stack.extend(node.values() if isinstance(node, Mapping) else node)
    return found


def facts_of(arguments: Sequence[Argument]) -> FlowFacts:
    """What policies are told."""
    labels: set[str] = set()
    sources: set[str] = set()
    for item in arguments:
        found = _names(item.origin.label)
        labels |= found
        if item.kind:
            labels |= {f"{name}.{item.kind}" for name in found}
        if item.origin.how == "made":
            labels.add("made")
        names = [name for name in item.origin.label.sources if not name.startswith("run:")]
        sources.update(names)
        if item.kind in TRUSTED_KINDS:
            sources.update(f"{item.kind}.{name}" for name in names)
    return FlowFacts(frozenset(labels), frozenset(sources))


def facts_of_label(label: Label) -> FlowFacts:
    """What policies are told of a model request."""
    return FlowFacts(frozenset(_names(label)), frozenset(label.sources))


def _names(label: Label) -> set[str]:
    names = set() if label.is_trusted else {"untrusted"}
    if not label.is_public:
        names.add("confidential")
    if label.secret:
        names.add("secret")
    return names


def judge(context: Context, flow: ToolFlow, arguments: Sequence[Argument]) -> Verdict:
    """What the labels say: denied, held, or allowed."""
    verdict = ALLOW
    viewers = {str(item.value) for item in arguments if item.kind == "recipient"}
    if not viewers and any(sink.kind == "recipient" for _, sink in flow.patterns()):
        viewers = {EVERYONE}  # it goes to whom the tool takes if nobody is named
    viewers |= set(flow.audience)
    for item in arguments:
        verdict = both(verdict, _trust(context, flow, item))
        verdict = both(verdict, _confidence(item, viewers))
    return verdict


def judge_release(name: str, roles: tuple[str, ...]) -> Verdict:
    """What is asked of somebody who gives a value another label: it always takes a person."""
    what = "everyone may see it" if name == DECLASSIFY else "it is trusted"
    return hold("flow-relabel", f"a value is given another label: from then on {what}", Demand(roles=roles))


def _trust(context: Context, flow: ToolFlow, item: Argument) -> Verdict:
    sink = item.sink
    needed = flow.others == "trusted" if sink is None else sink.needs_trust
    if not needed or item.origin.label.is_trusted:
        return ALLOW
    answer = (sink.untrusted if sink is not None else None) or flow.untrusted
    text = f"{_place(item)} is `{_value(item.value)}`, which {_told(context, item.origin)}"
    if answer == "policy":  # it is no verdict, but whoever is asked wants to know
        return Verdict(reasons=(Reason(code="flow-seen", message=text),))
    if answer == "deny":
        return deny("flow-untrusted", f"{text}; only a trusted value may be there")
    return hold("flow-untrusted", text, Demand(roles=flow.roles))


def _confidence(item: Argument, viewers: set[str]) -> Verdict:
    label = item.origin.label
    if label.is_public or not viewers:
        return ALLOW
    if not label.secret and EVERYONE not in viewers and viewers <= set(label.readers):
        return ALLOW
    source = shown(item.origin.source, item.origin.call) if item.origin.source else "confidential content"
    made = "is made from" if item.origin.how == "made" else "comes from"
    seen = "must not leave" if label.secret else "may not be seen by everyone who would see it"
    return deny("flow-confidential", f"{_place(item)} {made} {source}, which {seen}")


def _place(item: Argument) -> str:
    return f"`{paths.shown(item.path) or 'arguments'}`"


def _value(value: Any) -> str:
    return paths.shown((str(value)[:VALUE_SHOWN_MAX],))


def _told(context: Context, origin: Origin) -> str:
    if origin.how != "made":
        place = f" at `{paths.shown((origin.path,))}`" if origin.path else ""
        return f"comes from {shown(origin.source, origin.call)}{place}"
    seen = " and ".join(context.untrusted_sources())
    return f"was made after the run had seen {seen or 'content that is not trusted'}"


def output_labels(
    flow: ToolFlow,
    value: Any,
    *,
    run: str,
    call: int,
    tool: str,
    is_error: bool,
    named: bool,
    carried: Label = PUBLIC,
    given: Labels = (),
) -> Labels:
    """The labels of what a tool returned: what it declares, and where it comes from; an error is never trusted.

    What is made from confidential arguments is confidential: a tool that encodes or translates does not publish.

    A part that is declared stricter than the rest and is nowhere in the output makes the whole as strict: it may be there in
    another shape.

    Args:
        flow: what the tool declares.
        value: what it returned.
        run: the run.
        call: the number of the call.
        tool: its name.
        is_error: the tool says that it failed.
        named: whether the user named the place that was read.
        carried: what of its arguments is confidential; not for what the tool labels itself, which knows better.
        given: labels that the tool gave this very output; they count instead of those declared.
    """
    names = (f"tool:{tool}", f"run:{run}/{call}", *((NAMED,) if named else ()))
    origin = Label(sources=names, integrity="trusted")
    if is_error:
        origin = join(origin, Label())
    if not given:
        origin = msgspec.structs.replace(origin, readers=carried.readers, secret=carried.secret)
    declared = dict(given) if given else {"": flow.output, **flow.outputs}
    root = join(declared.pop("", UNKNOWN), origin)
    parts = {path: join(label, origin) for path, label in declared.items()}
    if parts:
        try:
            _, picked = paths.split(value, tuple(paths.parse(path) for path in parts))
        except RecursionError:
            return (("", join_all((root, *parts.values()))),)
        for (path, label), found in zip(list(parts.items()), picked, strict=True):
            if not found:
                del parts[path]
                root = join(root, label)
    return (("", root), *parts.items())


def is_named(arguments: Sequence[Argument]) -> bool:
    """Whether the user named what a tool is to read: one of the arguments is a text of his own, and all of them are trusted."""
    return all(item.origin.label.is_trusted for item in arguments) and any(
        item.origin.how == "trusted"
        and item.origin.source in SAID
        and isinstance(item.value, str)
        and len(item.value) >= NAME_LENGTH_MIN
        for item in arguments
    )


def relabelled(name: str, was: Label) -> Label:
    """The label of a value that somebody has declassified (its integrity stays) or endorsed (its readers stay)."""
    if name == DECLASSIFY:
        return msgspec.structs.replace(was, readers=(EVERYONE,), secret=False)
    return msgspec.structs.replace(was, integrity="trusted")
